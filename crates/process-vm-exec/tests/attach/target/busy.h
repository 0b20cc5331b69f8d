// Workers that compute: registers, flags, red zone and stacks are theirs, and time does not stop for them.

struct registers {
    uint64_t general[13]; // rax rbx rdx rsi rbp r8 to r15
    uint64_t flags;
    uint64_t red_zone[14];
    uint8_t vectors[16][32];
};

// Loads all registers from `in`, loops with nothing but `lea` and `jrcxz`, which change no flag, and stores them all
// in `out`. Below the stack pointer, in the red zone, are numbers too. `stack`, if not 0, is the stack pointer
// meanwhile: nothing is written there but the red zone below.
void spin_registers(const struct registers *in, struct registers *out, uint64_t loops, uint64_t avx, uint64_t stack);

#define ALL_VECTORS(X, INSN, FROM) \
    X(INSN, FROM, 0) X(INSN, FROM, 1) X(INSN, FROM, 2) X(INSN, FROM, 3) X(INSN, FROM, 4) X(INSN, FROM, 5) \
    X(INSN, FROM, 6) X(INSN, FROM, 7) X(INSN, FROM, 8) X(INSN, FROM, 9) X(INSN, FROM, 10) X(INSN, FROM, 11) \
    X(INSN, FROM, 12) X(INSN, FROM, 13) X(INSN, FROM, 14) X(INSN, FROM, 15)
#define LOAD(INSN, REG, N) INSN " 224+32*" #N "(%rdi), %" REG #N "\n"
#define STORE(INSN, REG, N) INSN " %" REG #N ", 224+32*" #N "(%rdi)\n"
#define RED_ZONE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13)
#define TO_RED_ZONE(N) "mov 112+8*" #N "(%rdi), %rax\n mov %rax, -128+8*" #N "(%rsp)\n"
#define FROM_RED_ZONE(N) "mov -128+8*" #N "(%rsp), %rax\n mov %rax, 112+8*" #N "(%rdi)\n"

_Static_assert(offsetof(struct registers, flags) == 104, "as in the assembly");
_Static_assert(offsetof(struct registers, red_zone) == 112, "as in the assembly");
_Static_assert(offsetof(struct registers, vectors) == 224, "as in the assembly");

__asm__(
    ".text\n"
    ".globl spin_registers\n"
    ".type spin_registers, @function\n"
    "spin_registers:\n"
    "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
    // The old stack pointer waits where the flags will be.
    "mov %rsp, 104(%rsi)\n"
    "test %r8, %r8\n"
    "cmovz %rsp, %r8\n"
    "mov %rcx, %r9\n"
    "mov %rdx, %rcx\n"
    "mov %r8, %rsp\n"
    RED_ZONE(TO_RED_ZONE)
    "test %r9, %r9\n"
    "jz 1f\n"
    ALL_VECTORS(LOAD, "vmovdqu", "ymm")
    "jmp 2f\n"
    "1:\n"
    ALL_VECTORS(LOAD, "movdqu", "xmm")
    "2:\n"
    "mov 104(%rdi), %rax\n"
    // The flags through -16(%rsp), which is not among the numbers.
    "mov %rax, -16(%rsp)\n"
    "mov %rsi, -8(%rsp)\n"
    "lea -16(%rsp), %rsp\n"
    "popf\n"
    "lea 8(%rsp), %rsp\n"
    "mov 0(%rdi), %rax\n mov 8(%rdi), %rbx\n mov 16(%rdi), %rdx\n mov 24(%rdi), %rsi\n mov 32(%rdi), %rbp\n"
    "mov 40(%rdi), %r8\n mov 56(%rdi), %r10\n mov 64(%rdi), %r11\n mov 72(%rdi), %r12\n"
    "mov 80(%rdi), %r13\n mov 88(%rdi), %r14\n mov 96(%rdi), %r15\n"
    "3:\n"
    "lea -1(%rcx), %rcx\n"
    "jrcxz 4f\n"
    "jmp 3b\n"
    "4:\n"
    // %rdi, whose value is checked by the use of it, becomes `out`; %rcx is 0.
    "mov -8(%rsp), %rdi\n"
    "mov %rax, 0(%rdi)\n mov %rbx, 8(%rdi)\n mov %rdx, 16(%rdi)\n mov %rsi, 24(%rdi)\n mov %rbp, 32(%rdi)\n"
    "mov %r8, 40(%rdi)\n mov %r10, 56(%rdi)\n mov %r11, 64(%rdi)\n mov %r12, 72(%rdi)\n"
    "mov %r13, 80(%rdi)\n mov %r14, 88(%rdi)\n mov %r15, 96(%rdi)\n"
    "mov 104(%rdi), %rbx\n"
    "pushf\n"
    "pop %rax\n"
    "cld\n"
    "mov %rax, 104(%rdi)\n"
    RED_ZONE(FROM_RED_ZONE)
    "test %r9, %r9\n"
    "mov %r9, 48(%rdi)\n"
    "jz 5f\n"
    ALL_VECTORS(STORE, "vmovdqu", "ymm")
    "vzeroupper\n"
    "jmp 6f\n"
    "5:\n"
    ALL_VECTORS(STORE, "movdqu", "xmm")
    "6:\n"
    "mov %rbx, %rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
    "ret\n"
    ".size spin_registers, .-spin_registers\n");

enum { FLAGS = 0xcd5 /* OF DF SF ZF AF PF CF */, FLAGS_ALWAYS = 0x202 };

static uint64_t mix(uint64_t seed)
{
    seed = (seed ^ seed >> 31) * 0x7fb5d329728ea185;
    return seed ^ seed >> 27;
}

static void spin_and_check(struct worker *w, uint64_t stack, uint64_t loops)
{
    struct registers in, out;
    uint64_t avx = __builtin_cpu_supports("avx") != 0;
    uint64_t seed = random_of(w);
    for (size_t at = 0; at + 8 <= sizeof in; at += 8) {
        uint64_t value = mix(seed + at);
        memcpy((char *)&in + at, &value, 8);
    }
    in.flags = (seed & FLAGS) | FLAGS_ALWAYS;
    in.general[6] = avx;
    memset(&out, 0, sizeof out);
    spin_registers(&in, &out, loops, avx, stack);
    static const char names[13][4] = {"rax", "rbx", "rdx", "rsi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    for (int i = 0; i < 13; i++)
        CHECK(in.general[i] == out.general[i], "%s was %llx and is %llx", names[i],
              (unsigned long long)in.general[i], (unsigned long long)out.general[i]);
    CHECK((in.flags & FLAGS) == (out.flags & FLAGS), "flags were %llx and are %llx", (unsigned long long)in.flags,
          (unsigned long long)out.flags);
    for (int i = 0; i < 14; i++)
        CHECK(in.red_zone[i] == out.red_zone[i], "the red zone was %llx at -%d and is %llx",
              (unsigned long long)in.red_zone[i], 128 - 8 * i, (unsigned long long)out.red_zone[i]);
    for (int i = 0; i < 16; i++)
        CHECK(memcmp(in.vectors[i], out.vectors[i], avx ? 32 : 16) == 0, "xmm%d or ymm%d has changed", i, i);
}

enum { SPIN_MEMORY = 64 << 10 };

static void open_spin(struct worker *w)
{
    w->memory = malloc(SPIN_MEMORY);
    CHECK(w->memory, "malloc");
    for (uint64_t i = 0; i < SPIN_MEMORY / 8; i++)
        ((uint64_t *)w->memory)[i] = mix(i + (uint64_t)w->number);
}

static void step_spin(struct worker *w)
{
    const uint64_t *words = w->memory;
    promise(w, 0);
    spin_and_check(w, 0, 500000);
    for (uint64_t i = 0; i < SPIN_MEMORY / 8; i++)
        CHECK(words[i] == mix(i + (uint64_t)w->number), "word %llu of the memory is %llx", (unsigned long long)i,
              (unsigned long long)words[i]);
}

static void close_memory(struct worker *w)
{
    free(w->memory);
}

// Looks at the clock, all the time.
static void step_clock(struct worker *w)
{
    int64_t end = now_ns() + 2 * NS_PER_MS;
    promise(w, 0);
    // What other workers of a single thread did since is no gap.
    if (options.single)
        w->gaps.last_ns = 0;
    do
        look(&w->gaps);
    while (w->gaps.last_ns < end);
}

// Looks at the clock, and sleeps for 100 us.
static void step_tick(struct worker *w)
{
    struct timespec time = timespec_of(100 * NS_PER_US);
    promise(w, 0);
    w->gaps.last_ns = 0;
    look(&w->gaps);
    check_result("nanosleep of 100 us", nanosleep(&time, NULL), errno, 0, 0);
    look(&w->gaps);
}

enum { ALTERNATE = 64 << 10 };
static __thread struct worker *on_stack;
// The last one that has been set, for the report, and whose it is.
static char *_Atomic alternate_stack;
static _Atomic pid_t alternate_stack_tid;

// Runs for a while on the alternate stack, whose lower part nobody else may write to.
static void on_alternate_stack(int signal, siginfo_t *info, void *context)
{
    volatile uint64_t words[512];
    uint64_t seed = ++arrived;
    char *stack = on_stack->memory;
    (void)signal;
    (void)info;
    (void)context;
    CHECK((char *)words >= stack && (char *)words < stack + ALTERNATE, "the handler's stack is at %p", (void *)words);
    for (int i = 0; i < 512; i++)
        words[i] = mix(seed + (uint64_t)i);
    for (int64_t end = now_ns() + NS_PER_MS / 2; now_ns() < end;)
        for (int i = 0; i < 512; i++)
            CHECK(words[i] == mix(seed + (uint64_t)i), "word %d of the handler's frame has changed", i);
    for (char *at = stack; at < stack + ALTERNATE / 2; at++)
        CHECK(*at == 0x55, "byte %td of the unused alternate stack has changed", at - stack);
}

static void open_altstack(struct worker *w)
{
    w->memory = malloc(ALTERNATE);
    CHECK(w->memory, "malloc");
    memset(w->memory, 0x55, ALTERNATE);
    stack_t stack = {.ss_sp = w->memory, .ss_size = ALTERNATE};
    CHECK(sigaltstack(&stack, NULL) == 0, "sigaltstack: %d", errno);
    handle(SIGUSR1, SA_ONSTACK, on_alternate_stack);
    on_stack = w;
    alternate_stack = w->memory;
    alternate_stack_tid = w->tid;
}

static void step_altstack(struct worker *w)
{
    stack_t stack;
    uint64_t before = arrived;
    promise(w, 0);
    set_mask(SIG_UNBLOCK, SIGUSR1);
    raise(SIGUSR1);
    set_mask(SIG_BLOCK, SIGUSR1);
    CHECK(arrived == before + 1, "%llu signals for one", (unsigned long long)(arrived - before));
    CHECK(sigaltstack(NULL, &stack) == 0 && stack.ss_sp == w->memory && stack.ss_flags == 0 && stack.ss_size == ALTERNATE,
          "the alternate stack is another now: %p", stack.ss_sp);
}

static void close_altstack(struct worker *w)
{
    stack_t none = {.ss_flags = SS_DISABLE};
    sigaltstack(&none, NULL);
    free(w->memory);
}

// A stack of the least size with an unmapped page below, at whose very end the stack pointer stays most of the time.
static void open_tiny(struct worker *w)
{
    long size = sysconf(_SC_THREAD_STACK_MIN);
    if (size < PTHREAD_STACK_MIN)
        size = PTHREAD_STACK_MIN;
    if (w->memory == NULL) {
        char *memory = mmap(NULL, 4096 + (size_t)size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED && mprotect(memory + 4096, (size_t)size, PROT_READ | PROT_WRITE) == 0,
              "mmap of a stack: %d", errno);
        w->memory = memory + 4096;
    }
}

static void step_tiny(struct worker *w)
{
    promise(w, 0);
    // The red zone's last byte is the stack's last byte.
    spin_and_check(w, (uint64_t)w->memory + 128, 2000000);
}

// Where whoever attaches may put code of his.
static uint64_t vdso_end;

static void interrupted(int signal, siginfo_t *info, void *context)
{
    uint64_t rip = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    (void)signal;
    (void)info;
    arrived++;
    CHECK(rip - (vdso_end - 512) >= 512, "a signal found this thread at %llx, at the end of the vDSO",
          (unsigned long long)rip);
}

static void open_interrupted(struct worker *w)
{
    char line[256];
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps, "fopen of /proc/self/maps: %d", errno);
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]"))
            vdso_end = strtoull(strchr(line, '-') + 1, NULL, 16);
    fclose(maps);
    CHECK(vdso_end, "no vDSO");
    handle(SIGRTMIN + 3, SA_RESTART, interrupted);
    w->timer = timer_for(SIGEV_THREAD_ID, SIGRTMIN + 3);
}

// Signals come all the time, each where this thread is: so often that one is always on its way, or now and then.
static void step_interrupted(struct worker *w)
{
    int64_t interval = (random_of(w) & 1024 ? 20 : 300) * NS_PER_US;
    uint64_t before = arrived;
    promise(w, 0);
    set_timer(w->timer, interval, interval);
    set_mask(SIG_UNBLOCK, SIGRTMIN + 3);
    spin_and_check(w, 0, 5000000);
    set_timer(w->timer, 0, 0);
    set_mask(SIG_BLOCK, SIGRTMIN + 3);
    CHECK(arrived > before, "no signal came");
}

static void close_interrupted(struct worker *w)
{
    timer_delete(w->timer);
}
