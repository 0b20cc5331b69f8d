// Restartable sequences (rseq(2)): counters per processor that add up, because a sequence that was interrupted starts
// anew. The memory area is the one that glibc has registered.

// Weak: libraries without rseq have none.
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

enum { RSEQ_CPUS = 1024 };

static struct {
    _Alignas(64) uint64_t count;
} per_cpu[RSEQ_CPUS];
static _Atomic uint64_t rseq_done, rseq_aborts;
// Readers count, the writer adds up.
static pthread_rwlock_t rseq_lock;

static bool rseq_works(void)
{
    return &__rseq_size != NULL && __rseq_size != 0;
}

// Where this thread's area is; 0 if there is none.
static uint64_t rseq_area(void)
{
    return rseq_works() ? (uint64_t)__builtin_thread_pointer() + (uint64_t)__rseq_offset : 0;
}

// Adds one to the counter of this processor. The sequence is long, so that many are interrupted.
static bool rseq_increment(void)
{
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    uint32_t cpu = *(volatile uint32_t *)area; // cpu_id_start
    uint64_t *count = &per_cpu[cpu % RSEQ_CPUS].count;
    uint64_t scratch, loops;
    bool done = true;
    __asm__ volatile(
        ".pushsection __rseq_cs, \"aw\"\n"
        ".balign 32\n"
        "9: .long 0, 0\n"
        ".quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "lea 9b(%%rip), %[scratch]\n"
        "mov %[scratch], 8(%[area])\n" // rseq_cs
        "1:\n"
        "cmp %[cpu], 4(%[area])\n" // cpu_id
        "jne 3f\n"
        "mov (%[count]), %[scratch]\n"
        "mov $200, %[loops]\n"
        "5: dec %[loops]\n"
        "jnz 5b\n"
        "add $1, %[scratch]\n"
        "mov %[scratch], (%[count])\n"
        "2:\n"
        ".pushsection __rseq_failure, \"ax\"\n"
        // The signature, which the kernel looks for before the handler, in an instruction that is none.
        ".byte 0x0f, 0xb9, 0x3d\n"
        ".long 0x53053053\n"
        "4:\n"
        "3: movb $0, %[done]\n"
        "jmp 2b\n"
        ".popsection\n"
        : [scratch] "=&r"(scratch), [loops] "=&r"(loops), [done] "+m"(done)
        : [area] "r"(area), [cpu] "r"(cpu), [count] "r"(count)
        : "memory", "cc");
    return done;
}

static void step_rseq(struct worker *w)
{
    promise(w, 0);
    pthread_rwlock_rdlock(&rseq_lock);
    for (int64_t end = now_ns() + 2 * NS_PER_MS; now_ns() < end;) {
        uint64_t done = 0, aborts = 0;
        for (int i = 0; i < 1000; i++) {
            if (rseq_increment())
                done++;
            else
                aborts++;
        }
        rseq_done += done;
        rseq_aborts += aborts;
    }
    pthread_rwlock_unlock(&rseq_lock);
}

static void check_rseq(void)
{
    uint64_t sum = 0;
    pthread_rwlock_wrlock(&rseq_lock);
    for (int cpu = 0; cpu < RSEQ_CPUS; cpu++)
        sum += per_cpu[cpu].count;
    CHECK(sum == rseq_done, "rseq counters add up to %llu, not to %llu; %llu aborts", (unsigned long long)sum,
          (unsigned long long)rseq_done, (unsigned long long)rseq_aborts);
    pthread_rwlock_unlock(&rseq_lock);
}

static void start_rseq(void)
{
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&rseq_lock, &attributes);
}
