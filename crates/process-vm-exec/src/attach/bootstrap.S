/*
 * The bootstrap: a few instructions, put where nothing is in a live process's text, by which one of its threads makes
 * the executor and goes on as if nothing had been.
 *
 * Every task here completes by itself, whoever traces it or does not any more: the thread goes back to where it was,
 * its helper ends, and the executor ends too, unless its tracer has given it something else to do.
 * No task uses a stack: they all have the thread's stack pointer. Data is read only, relative to RIP.
 *
 *   thread (of the target) --clone--> helper (a thread beside it) --clone--> parent (a process) --clone--> executor
 *
 * The helper waits for the parent, so that the target has no child when all is done, and ends without a trace; the
 * executor, whose parent is gone, is init's child.
 */
    .pushsection .rodata.process_vm_exec_bootstrap, "a", @progbits
    .balign 16
    .globl process_vm_exec_bootstrap
process_vm_exec_bootstrap:
    /* in: the registers of an rt_sigprocmask, which the tracer has set: that is the commit. Whoever is made from here on
     * is born with all signals blocked: none of the target's is for it. */
    syscall
    mov ${HELPER}, %edi
    xor %esi, %esi
    xor %r10d, %r10d                    /* rdx and r8 are 0 */
    mov ${SYS_clone}, %eax
    syscall
    .globl process_vm_exec_cloned
process_vm_exec_cloned:
    test %rax, %rax
    jz 20f
    /* Only if nobody has set the thread's registers meanwhile: back with them, and with the signal mask. */
    GO_BACK 91f, 93f, 94f, 95f

20: mov ${PARENT}, %edi                 /* the helper; rsi, rdx, r10 and r8 are 0 */
    mov ${SYS_clone}, %eax
    syscall
    test %rax, %rax
    jz 30f
    mov %eax, %edi                      /* rsi and r10 are 0 */
    mov ${WALL}, %edx
    mov ${SYS_wait4}, %eax
    syscall
    jmp 40f

30: mov 92f(%rip), %edi                 /* the parent: an executor, and perhaps one that shares with the target */
    mov ${SYS_clone}, %eax
    syscall
    test %rax, %rax
    jz 40f
    mov 92f+4(%rip), %edi
    test %edi, %edi
    jz 40f
    mov ${SYS_clone}, %eax
    syscall

40: mov ${SYS_exit}, %eax               /* and whoever has nothing else to do */
    xor %edi, %edi
    .globl process_vm_exec_site_exit
process_vm_exec_site_exit:              /* a call that the tracer sets up; the end, if nobody does after it */
    syscall
    jmp 40b

50: mov ${SYS_pause}, %eax
    .globl process_vm_exec_site_pause
process_vm_exec_site_pause:             /* the same, once there is a janitor, who needs the executor */
    syscall
    jmp 50b

    .balign 8
    .globl process_vm_exec_bootstrap_data
process_vm_exec_bootstrap_data:
    .quad -1                            /* all signals, for the first call */
91: .quad 0                             /* the thread's signal mask */
92: .quad 0                             /* flags of the executors' clones, 32 bits each */
93: .quad 0                             /* RFLAGS */
94: .fill 15, 8, 0                      /* rax rbx rcx rdx rsi rdi rbp r8 to r15 */
95: .quad 0                             /* RIP */
    .globl process_vm_exec_bootstrap_end
process_vm_exec_bootstrap_end:
    .popsection
    .purgem GO_BACK
