// What others may use of this process: functions to call, memory to read and write, a signal handler to find.

enum { MAGIC = 0x5eed };

static __thread volatile uint64_t thread_number;
static volatile uint64_t target_word = 0x0123456789abcdef;

__attribute__((used, noinline)) static uint64_t target_add(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f;
}

// A variable of the calling thread.
__attribute__((used, noinline)) static uint64_t target_tls(void)
{
    return thread_number;
}

// The word at FS base: in a thread of the C library, that address itself.
__attribute__((used, noinline)) static uint64_t target_fs(void)
{
    uint64_t word;
    __asm__ volatile("mov %%fs:0, %0" : "=r"(word));
    return word;
}

__attribute__((used, noinline)) static uint64_t target_getpid(void)
{
    uint64_t result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_getpid) : "rcx", "r11", "memory");
    return result;
}

// Uses aligned vectors on the stack, and some of the stack.
__attribute__((used, noinline)) static uint64_t target_stack(uint64_t words)
{
    _Alignas(16) volatile uint64_t local[512];
    uint64_t sum = 0;
    uint64_t aligned = (uint64_t)local % 16 == 0;
    __asm__ volatile("movaps %%xmm0, (%0)" : : "r"(local) : "memory");
    for (uint64_t i = 0; i < words && i < 512; i++)
        local[i] = i;
    for (uint64_t i = 0; i < words && i < 512; i++)
        sum += local[i];
    return aligned ? sum : ~0ull;
}

__attribute__((used, noinline)) static uint64_t target_fault(uint64_t addr)
{
    return *(volatile uint64_t *)addr;
}

static void target_handler(int signal)
{
    (void)signal;
    target_word++;
}
