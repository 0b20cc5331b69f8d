// Every system call with extreme arguments. Whatever they do to this program, they must not end the supervisor.
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define SCRATCH ((char *)0x10000000)
#define CALLS 60

static uint64_t state = 88172645463325252;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void nothing(int signal) { (void)signal; }

// Calls that end the program as they should, wait for what does not come, or are about all of the machine.
static int is_left_out(long number)
{
    static const short numbers[] = {SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_sync, SYS_syncfs, SYS_kill, SYS_tkill,
        SYS_tgkill, SYS_munmap, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_fork, SYS_vfork, SYS_clone, SYS_reboot};
    for (size_t index = 0; index < sizeof numbers / sizeof *numbers; index++)
        if (numbers[index] == number)
            return 1;
    return 0;
}

int main(void)
{
    static const uint64_t values[] = {0, 1, 2, 3, 4, -1ul, -2ul, LONG_MIN, LONG_MAX, INT_MIN, INT_MAX, UINT_MAX, 1ul << 32, 1ul << 40,
        1ul << 47, 0x7ffffffff000, 0x700000000000, 0x700000001000, 0x700000100000, 0x700004000000, -4096ul, 8, 64, 4096,
        (uint64_t)SCRATCH, (uint64_t)SCRATCH, (uint64_t)SCRATCH, (uint64_t)SCRATCH + 4080, (uint64_t)SCRATCH + 4095};
    static const unsigned char fillings[] = {0, 0, 1, 0x7f, 0x80, 0xff};
    const size_t count = sizeof values / sizeof *values;
    struct itimerval soon = {{0, 1000}, {0, 1000}};
    int pair[2];

    // A page of the library's. Natively nothing is there: this program would do harm, and ends here.
    (void)*(volatile char *)0x700000001000;
    for (int fd = 0; fd < 64; fd++)
        close(fd);
    // Files of its own: what is done to them takes no room, and waits for nobody else's locks.
    if (memfd_create("extremes", MFD_ALLOW_SEALING) != 0 || ftruncate(0, 4096) != 0 ||
        fcntl(0, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0 || open(".", O_RDONLY) != 1 || dup(0) != 2 ||
        socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) != 0)
        return 2;
    for (long number = 0; number < 512; number++) {
        if (is_left_out(number))
            continue;
        for (int call = 0; call < CALLS; call++) {
            uint64_t args[6];
            sigset_t none;
            struct sigaction action = {.sa_handler = nothing};
            for (int arg = 0; arg < 6; arg++)
                args[arg] = values[next_random() % count];
            mmap(SCRATCH, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            if (next_random() % 4 != 0) {
                memset(SCRATCH, fillings[next_random() % sizeof fillings], 4096);
            } else {
                for (int word = 0; word < 512; word++)
                    ((uint64_t *)SCRATCH)[word] = values[next_random() % count];
            }
            sigemptyset(&none);
            sigaction(SIGALRM, &action, NULL);
            sigaction(SIGPIPE, &action, NULL);
            sigprocmask(SIG_SETMASK, &none, NULL);
            setitimer(ITIMER_REAL, &soon, NULL);
            syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]);
        }
    }
    return 42;
}
