/* qsort N: sorts N random words through a comparison callback, then checks the order. */
#include "rt.h"

static NOINLINE int by_value(const u32 *a, const u32 *b)
{
    return *a < *b ? -1 : *a > *b;
}

static void swap(u32 *a, u32 *b)
{
    u32 t = *a;
    *a = *b;
    *b = t;
}

static NOINLINE void sort(u32 *low, u32 *high, int (*compare)(const u32 *, const u32 *))
{
    while (high - low > 1) {
        u32 pivot = low[(high - low) / 2], *left = low, *right = high - 1;
        while (left <= right) {
            while (compare(left, &pivot) < 0)
                left++;
            while (compare(right, &pivot) > 0)
                right--;
            if (left <= right)
                swap(left++, right--);
        }
        sort(low, right + 1, compare);
        low = left;
    }
}

int main(int argc, char **argv)
{
    u32 count = argc > 1 ? parse_dec(argv[1]) : 5000, hash = 1;
    int (*volatile compare)(const u32 *, const u32 *) = by_value;
    u32 *words = map((count * 4 + PAGE - 1) & ~(PAGE - 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    for (u32 i = 0; i < count; i++)
        words[i] = random32();
    sort(words, words + count, compare);
    for (u32 i = 0; i < count; i++) {
        if (i && words[i - 1] > words[i])
            put("out of order\n");
        hash = mix(hash, words[i]);
    }
    report("qsort", hash);
    return 0;
}
