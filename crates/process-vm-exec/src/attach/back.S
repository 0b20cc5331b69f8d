/*
 * How a thread of a live process goes back to what it did, by itself: with its signal mask, flags and registers, which
 * lie at these labels. Uses no stack, and changes nothing else.
 */
    .macro GO_BACK mask, flags, registers, rip
    mov $2, %edi                        /* SIG_SETMASK */
    lea \mask(%rip), %rsi
    xor %edx, %edx
    mov $8, %r10d
    mov ${SYS_rt_sigprocmask}, %eax
    syscall
    mov \flags(%rip), %edx              /* as popfq would, without a stack */
    test $0x400, %edx                   /* DF */
    jz 1f
    std
1:  mov %dl, %ah
    shr $11, %edx
    and $1, %dl
    mov %dl, %al
    add $0x7f, %al                      /* OF */
    sahf
    mov \registers(%rip), %rax
    mov \registers+8(%rip), %rbx
    mov \registers+16(%rip), %rcx
    mov \registers+24(%rip), %rdx
    mov \registers+32(%rip), %rsi
    mov \registers+40(%rip), %rdi
    mov \registers+48(%rip), %rbp
    mov \registers+56(%rip), %r8
    mov \registers+64(%rip), %r9
    mov \registers+72(%rip), %r10
    mov \registers+80(%rip), %r11
    mov \registers+88(%rip), %r12
    mov \registers+96(%rip), %r13
    mov \registers+104(%rip), %r14
    mov \registers+112(%rip), %r15
    jmp *\rip(%rip)
    .endm
