
/* The rest is the same for every circuit.

   A word holds one bit of each of BLOCK images: 512, or 64 with -DPLAIN_WORDS, which needs no extension of C11. A block
   of images is packed into a word for each input; the gates are a table, computed in order, whose outputs take the
   places of words that are no longer needed; sums of outputs are counted in words too, a word for each binary digit;
   the largest is found digit by digit. */

#if defined __GNUC__ && !defined PLAIN_WORDS
typedef uint64_t word __attribute__((vector_size(64), may_alias));
#else
typedef uint64_t word;
#endif

#if LARGEST == 1
#define BIT(byte, cut) (byte)
#else
#define BIT(byte, cut) ((byte) > (cut))
#endif

#define LANES (sizeof(word) / 8)
#define BLOCK (64 * LANES)

struct space {
    word v[PLACES];
    word sums[CLASSES][DIGITS];
    word class_digits[CLASS_DIGITS];
    uint64_t column[INPUTS];
    uint8_t rows[8][INPUTS];
};

const int32_t circuit_sizes[] = {PIXELS, INPUTS, CLASSES, CUTS, BLOCK};
const uint8_t circuit_cuts[] = CUT_VALUES;

/* Return a new space whose places are false, as place 0 stays; NULL if there is no memory. */
static struct space *new_space(void) {
    struct space *s = aligned_alloc(64, (sizeof(struct space) + 63) / 64 * 64);
    if (s) memset(s->v, 0, sizeof s->v);
    return s;
}

/* Pack up to BLOCK images; return whether all their bytes are allowed. */
static int pack(struct space *s, const uint8_t *images, size_t n) {
    uint64_t *words = (uint64_t *)(s->v + 1);
    uint8_t seen = 0;
    for (size_t lane = 0; lane < LANES; lane++) {
        for (size_t g = 0; g < 8; g++) {
            const uint8_t *x[8]; /* after the last image it is repeated, and nobody reads its results */
            for (size_t r = 0; r < 8; r++) {
                size_t image = 64 * lane + 8 * g + r;
                x[r] = images + PIXELS * (image < n ? image : n - 1);
            }
            if (64 * lane + 8 * g >= n) {
                memset(s->rows[g], 0, INPUTS);
                continue;
            }
            for (size_t c = 0; c < CUTS; c++) {
                uint8_t *row = s->rows[g] + c * PIXELS;
                for (size_t i = 0; i < PIXELS; i++) {
                    uint8_t bits = 0;
                    for (int r = 7; r >= 0; r--) bits = (uint8_t)(bits + bits + BIT(x[r][i], circuit_cuts[c]));
                    row[i] = bits;
                }
            }
            for (size_t i = 0; LARGEST < 255 && i < PIXELS; i++)
                seen |= x[0][i] | x[1][i] | x[2][i] | x[3][i] | x[4][i] | x[5][i] | x[6][i] | x[7][i];
        }
        for (size_t i = 0; i < INPUTS; i++) {
            uint64_t bits = 0;
            for (int g = 0; g < 8; g++) bits |= (uint64_t)s->rows[g][i] << 8 * g;
            s->column[i] = bits;
        }
        for (size_t i = 0; i < INPUTS; i++) words[i * LANES + lane] = s->column[i];
    }
    return !(seen & ~LARGEST);
}

static void compute(word *v) {
#define RUN(first, last, output)                                \
    for (size_t i = first; i < last; i++) {                     \
        const word a = v[gates[i][0]], b = v[gates[i][1]];      \
        v[gates[i][2]] = output;                                \
    }
    GATES
#undef RUN
}

/* Add bits x to the digits p from k upwards. */
static inline void add(word *p, size_t k, const word *bits) {
    word x = *bits;
    for (; k < DIGITS; k++) {
        const word carry = p[k] & x;
        p[k] ^= x;
        x = carry;
    }
}

/* Add bits x and y to one digit; the carry replaces x. */
static inline void add_two(word *p, word *x, const word *y) {
    const word differ = *x ^ *y, sum = differ ^ *p;
    *x = (*x & *y) | (differ & *p);
    *p = sum;
}

/* Add `size` outputs, each XORed with *flip, to the digits p. Two carries of one digit wait for each other. */
static void count(word *p, const word *v, const place *outputs_of, size_t size, const word *flip) {
    word waiting[DIGITS + 1], x, y;
    for (size_t i = 0; i < size / 2; i++) {
        x = v[outputs_of[2 * i]] ^ *flip;
        y = v[outputs_of[2 * i + 1]] ^ *flip;
        add_two(p, &x, &y);
        size_t k = 1;
        for (size_t odd = i; odd & 1; odd >>= 1, k++) add_two(p + k, &x, waiting + k);
        waiting[k] = x;
    }
    for (size_t k = 1; k < DIGITS; k++)
        if (size >> k & 1) add(p, k, waiting + k);
    if (size & 1) {
        x = v[outputs_of[size - 1]] ^ *flip;
        add(p, 0, &x);
    }
}

static void sum(struct space *s) {
    const word none = s->v[0], all = ~none;
    memset(s->sums, 0, sizeof s->sums);
    for (size_t c = 0; c < CLASSES; c++) {
        const place *own = outputs + c * OUTPUTS;
        count(s->sums[c], s->v, own, plain[c], &none);
        count(s->sums[c], s->v, own + plain[c], OUTPUTS - plain[c], &all);
    }
}

/* Find the first largest sum, as binary digits of its class. */
static void choose(struct space *s) {
    word best[DIGITS];
    memcpy(best, s->sums[0], sizeof best);
    memset(s->class_digits, 0, sizeof s->class_digits);
    for (size_t c = 1; c < CLASSES; c++) {
        const word *p = s->sums[c];
        word larger = s->v[0];
        for (size_t k = 0; k < DIGITS; k++) larger = (p[k] & ~best[k]) | (larger & ~(p[k] ^ best[k]));
        for (size_t k = 0; k < DIGITS; k++) best[k] ^= (best[k] ^ p[k]) & larger;
        for (size_t k = 0; k < CLASS_DIGITS; k++) {
            if (c >> k & 1)
                s->class_digits[k] |= larger;
            else
                s->class_digits[k] &= ~larger;
        }
    }
}

/* Write numbers of n images, a step apart, from their binary digits. */
static void unpack(const word *digits, size_t size, size_t n, int32_t *numbers, size_t step) {
    const uint64_t *words = (const uint64_t *)digits;
    for (size_t first = 0; first < n; first += 64) {
        int32_t own[64] = {0};
        for (size_t k = 0; k < size; k++) {
            const uint64_t bits = words[k * LANES + first / 64];
            for (int j = 0; j < 64; j++) own[j] |= (int32_t)(bits >> j & 1) << k;
        }
        for (size_t j = 0; j < 64 && first + j < n; j++) numbers[(first + j) * step] = own[j];
    }
}

static size_t block(size_t n, size_t first) { return n - first < BLOCK ? n - first : BLOCK; }

int circuit_classes(const uint8_t *images, size_t n, int32_t *classes) {
    struct space *s = new_space();
    int result = s ? 0 : -1;
    for (size_t first = 0; first < n && !result; first += BLOCK) {
        result = !pack(s, images + first * PIXELS, block(n, first));
        compute(s->v);
        sum(s);
        choose(s);
        unpack(s->class_digits, CLASS_DIGITS, block(n, first), classes + first, 1);
    }
    free(s);
    return result;
}

int circuit_sums(const uint8_t *images, size_t n, int32_t *sums) {
    struct space *s = new_space();
    int result = s ? 0 : -1;
    for (size_t first = 0; first < n && !result; first += BLOCK) {
        result = !pack(s, images + first * PIXELS, block(n, first));
        compute(s->v);
        sum(s);
        for (size_t c = 0; c < CLASSES; c++)
            unpack(s->sums[c], DIGITS, block(n, first), sums + first * CLASSES + c, CLASSES);
    }
    free(s);
    return result;
}

int circuit_pack(const uint8_t *images, size_t n, uint64_t *words) {
    struct space *s = new_space();
    int result = s ? 0 : -1;
    for (size_t first = 0; first < n && !result; first += BLOCK) {
        result = !pack(s, images + first * PIXELS, block(n, first));
        memcpy(words + first / 64 * INPUTS, s->v + 1, INPUTS * sizeof(word));
    }
    free(s);
    return result;
}

int circuit_classes_of_words(const uint64_t *words, size_t n, int32_t *classes) {
    struct space *s = new_space();
    int result = s ? 0 : -1;
    for (size_t first = 0; first < n && !result; first += BLOCK) {
        memcpy(s->v + 1, words + first / 64 * INPUTS, INPUTS * sizeof(word));
        compute(s->v);
        sum(s);
        choose(s);
        unpack(s->class_digits, CLASS_DIGITS, block(n, first), classes + first, 1);
    }
    free(s);
    return result;
}
