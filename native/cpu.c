/* cpu.c: which instruction sets this machine can run. A CPU bit alone is not enough: the operating system
 * must also save the wide registers when it switches threads, which XCR0 tells (Intel SDM vol. 1, ch. 13).
 */
#include "kernels.h"
#include "os.h"

#if defined(__x86_64__) || defined(_M_X64)

#if defined(_MSC_VER) && !defined(__clang__)
#include <immintrin.h>
#include <intrin.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4]) { __cpuidex((int *)out, (int)leaf, (int)sub); }
static uint64_t xcr0(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4]) {
    __cpuid_count(leaf, sub, out[0], out[1], out[2], out[3]);
}
static uint64_t xcr0(void) { /* XGETBV by its bytes: the intrinsic would need a target flag */
    uint32_t low, high;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif

#define ALL_SAVED UINT64_MAX
enum { EAX, EBX, ECX, EDX };
static uint32_t bit(uint32_t word, int at) { return word >> at & 1u; }

/* Intel SDM vol. 1, ch. 18: tiles of palette 1 as amx.c wants them (leaf 1Dh), their state in XCR0, and the system's leave. */
static int has_amx(uint32_t last, uint64_t saved) {
    uint32_t r[4];
    if (last < 0x1d || (saved & 0x60000u) != 0x60000u) return 0;
    cpuid(7, 0, r);
    if (!bit(r[EDX], 24) || !bit(r[EDX], 22)) return 0; /* AMX-TILE, AMX-BF16 */
    cpuid(0x1d, 0, r);
    if (r[EAX] < 1) return 0;
    cpuid(0x1d, 1, r);
    return r[EAX] >> 16 >= 1024 && (r[EBX] & 0xffffu) >= 64 && r[EBX] >> 16 >= 8 && (r[ECX] & 0xffffu) >= 16 &&
           (saved == ALL_SAVED || el_os_request_tiles());
}

/* `saved`: the registers that the system saves, as in XCR0; ALL_SAVED: as if it saved them all. */
static uint32_t features(uint64_t saved) {
    uint32_t r[4], bits = 0;
    cpuid(0, 0, r);
    uint32_t last = r[EAX];
    if (last < 1) return 0;
    cpuid(1, 0, r);
    uint32_t osxsave = bit(r[ECX], 27), avx = bit(r[ECX], 28), fma = bit(r[ECX], 12), f16c = bit(r[ECX], 29), popcnt = bit(r[ECX], 23);
    if ((!osxsave && saved != ALL_SAVED) || !avx || (saved & 6u) != 6u) return 0; /* XMM and YMM state */
    if (fma) bits |= EL_CPU_FMA;
    if (f16c) bits |= EL_CPU_F16C;
    if (last >= 7) {
        cpuid(7, 0, r);
        uint32_t deepest = r[EAX], ebx = r[EBX], ecx = r[ECX];
        if (bit(ebx, 5)) bits |= EL_CPU_AVX2;
        if ((saved & 0xe6u) == 0xe6u && bit(ebx, 16) && bit(ebx, 17) && bit(ebx, 30) && bit(ebx, 31)) { /* F DQ BW VL; ZMM, k */
            bits |= EL_CPU_AVX512;
            if (bit(ecx, 11)) bits |= EL_CPU_AVX512VNNI;
            if (bit(ecx, 6) && popcnt) bits |= EL_CPU_VBMI2;
        }
        if (deepest >= 1) {
            cpuid(7, 1, r);
            if (bit(r[EAX], 4)) bits |= EL_CPU_AVXVNNI;
        }
        if (has_amx(last, saved)) bits |= EL_CPU_AMX;
    }
    return bits;
}

int64_t el_cpu_saved_state(void) {
    uint32_t r[4];
    cpuid(0, 0, r);
    if (r[EAX] < 1) return -1;
    cpuid(1, 0, r);
    return bit(r[ECX], 27) ? (int64_t)(xcr0() & INT64_MAX) : -1; /* OSXSAVE: the instruction may be used */
}

#elif defined(__aarch64__)

/* User code may not read the ID registers everywhere: the system tells. */
#if defined(__linux__)
#include <sys/auxv.h>
static uint32_t known(void) {
    unsigned long bits = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
    if (!(bits >> 1 & 1)) return 0; /* HWCAP_ASIMD; the numbers, because older headers lack the names */
    return EL_CPU_NEON | (bits >> 20 & 1 ? EL_CPU_DOTPROD : 0u) | (more >> 13 & 1 ? EL_CPU_I8MM : 0u);
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int has(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}
static uint32_t known(void) {
    return EL_CPU_NEON | (has("hw.optional.arm.FEAT_DotProd") ? EL_CPU_DOTPROD : 0u) |
           (has("hw.optional.arm.FEAT_I8MM") ? EL_CPU_I8MM : 0u);
}
#else
static uint32_t known(void) { return EL_CPU_NEON; } /* every 64-bit ARM that runs a general system has it */
#endif
#define ALL_SAVED 0 /* the system tells what may be used, not what the CPU has beside that */
static uint32_t features(uint64_t saved) { return (void)saved, known(); }
int64_t el_cpu_saved_state(void) { return -1; }

#else

#define ALL_SAVED 0
static uint32_t features(uint64_t saved) { return (void)saved, 0; }
int64_t el_cpu_saved_state(void) { return -1; }

#endif

uint32_t el_cpu_features(void) {
    int64_t saved = el_cpu_saved_state();
    uint32_t bits = features(saved < 0 ? 0 : (uint64_t)saved);
#ifdef EL_TILES_EMULATED
    bits |= EL_CPU_EMULATED;
#endif
    return bits;
}

uint32_t el_cpu_announced(void) { return features(ALL_SAVED) | el_cpu_features(); }

const char *el_cpu_feature_name(int number) {
    static const char *const names[] = {"avx2", "fma", "f16c", "avx_vnni", "avx512", "avx512_vnni", "avx512_vbmi2"};
    static const char *const arm[] = {"neon", "dotprod", "i8mm"};
    if (number >= 0 && number < (int)(sizeof names / sizeof *names)) return names[number];
    if (number >= 16 && number < 16 + (int)(sizeof arm / sizeof *arm)) return arm[number - 16];
    return number == 24 ? "amx" : number == 30 ? "emulated_tiles" : NULL;
}
