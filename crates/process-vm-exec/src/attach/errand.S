/*
 * An errand: system calls that a thread of a live process makes for us, between two instructions of its own.
 *
 * It completes by itself, whoever traces the thread or does not any more. It uses no stack and no extended state; the
 * data is read only, relative to RIP. The thread's tracer takes it away from where it waits at the end, as it can give
 * it back all of its registers, those included with which the kernel restarts an interrupted call.
 *
 * in, which the tracer has set: that is the commit
 *   rbx  the first call: number and six arguments
 *   r12  where its result goes; the others follow
 *   r13  how many calls there are
 *   r14  what is set to 1 when all are made
 */
    .pushsection .rodata.process_vm_exec_errand, "a", @progbits
    .balign 16
    .globl process_vm_exec_errand
process_vm_exec_errand:
    mov $2, %edi                        /* no handler of the target is to find itself here. SIG_SETMASK */
    lea 90f(%rip), %rsi
    xor %edx, %edx
    mov $8, %r10d
    mov ${SYS_rt_sigprocmask}, %eax
    syscall
10: mov (%rbx), %rax
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    mov 48(%rbx), %r9
    syscall
    mov %rax, (%r12)
    add $56, %rbx
    add $8, %r12
    dec %r13
    jnz 10b
    movl $1, (%r14)
    mov ${WAIT}, %ecx
11: pause
    dec %ecx
    jnz 11b
    GO_BACK 91f, 92f, 93f, 94f          /* nobody has come */

    .balign 8
    .globl process_vm_exec_errand_data
process_vm_exec_errand_data:
90: .quad -1                            /* all signals */
91: .quad 0                             /* the thread's signal mask */
92: .quad 0                             /* RFLAGS */
93: .fill 15, 8, 0                      /* rax rbx rcx rdx rsi rdi rbp r8 to r15 */
94: .quad 0                             /* RIP */
    .popsection
    .purgem GO_BACK
