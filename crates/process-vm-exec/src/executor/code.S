/*
 * The resident code: what runs in another address space for the supervisor.
 *
 * It runs with the rights of the guest (executors) or holds all its state in registers (service tasks), because
 * guests can write the mailboxes. Executors use no vector registers: the guest's extended state stays live in them.
 * Service tasks keep the key in theirs with which they sign what they report (service.rs): a guest that writes into
 * the results can spoil them, but not forge them.
 * It is linked nowhere: its bytes are copied into an image that is mapped at the start of a region, wherever that is. So
 * it refers to itself and to all that is in the region by RIP only. region: its offset from the code.
 *
 * While waiting, all tasks here have
 *   rbx  the half that this task writes (mailbox, or result)
 *   rbp  the half that the supervisor writes (command, or request)
 *   r12d the word that is there until the supervisor passes control: a service task's last request, an executor's own report
 */

/* Wait until the word at (\word) differs from r12d; the new one is left in eax.
 * Look with pauses, then with the clock in between, then yield between looks, then sleep: executor::handoff is the
 * same in Rust, and says why.
 * Clobbers rax rcx rdx rsi rdi r8 r10 r11 r13. */
.macro WAIT word
    mov {CPU}(%rbp), %ecx
    cmp %ecx, {CPU}(%rbx)
    je 10f
    mov {PAUSES}(%rbx), %edx
    mov ${MOST_PAUSES}, %ecx
    cmp %ecx, %edx
    cmova %ecx, %edx
    mov %edx, %ecx
    shr ${PAUSE_SHIFT}, %ecx
    jz 15f
14: pause
    dec %ecx
    jnz 14b
15: mov (\word), %eax
    cmp %r12d, %eax
    je 16f
    sub $1, %edx
    adc $0, %edx                        /* not below zero */
    mov %edx, {PAUSES}(%rbx)
    jmp 9f
16: add ${PAUSE}, %edx
    mov %edx, {PAUSES}(%rbx)
    mov ${QUICK_LOOKS}, %ecx
1:  mov (\word), %eax
    cmp %r12d, %eax
    jne 9f
    pause
    dec %ecx
    jnz 1b
10: rdtscp
    and $0xfff, %ecx
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %r13
    lea region+{PARAMS}(%rip), %r10
2:  cmp %ecx, {CPU}(%rbx)
    je 3f
    mov %ecx, {CPU}(%rbx)
3:  mov (\word), %eax
    cmp %r12d, %eax
    jne 9f
    cmp %ecx, {CPU}(%rbp)
    je 4f
    mov ${LOOKS}, %esi
6:  mov (\word), %eax
    cmp %r12d, %eax
    jne 9f
    dec %esi
    jnz 6b
    pause
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %r13, %rax
    cmp {BUDGET_TICKS}(%r10), %rax
    ja 5f
    cmp {YIELD_TICKS}(%r10), %rax
    jb 3b
4:  cmpl $0, {NO_YIELD}(%rbx)
    jne 8f
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %r8
    mov ${SYS_sched_yield}, %eax
    syscall
    rdtscp
    and $0xfff, %ecx
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %rdx
    sub %r8, %rdx
    mov %rax, %r8
    mov {PENALTY}(%rbx), %esi
    cmp {PATIENCE_TICKS}(%r10), %rdx
    jbe 11f
    mov ${FEWEST_WAITS_WITHOUT_YIELD}, %eax
    cmp %ecx, {CPU}(%rbp)
    jne 13f
    cmp %eax, %esi
    cmovb %eax, %esi
    mov %esi, {NO_YIELD}(%rbx)
    add %esi, %esi
    mov ${MOST_WAITS_WITHOUT_YIELD}, %eax
    cmp %eax, %esi
    cmova %eax, %esi
    jmp 12f
13: mov %eax, {NO_YIELD}(%rbx)
    jmp 7f
11: cmp ${FEWEST_WAITS_WITHOUT_YIELD}, %esi
    jb 7f
    mov %esi, %eax
    shr $3, %eax
    sub %eax, %esi
12: mov %esi, {PENALTY}(%rbx)
7:  mov (\word), %eax
    cmp %r12d, %eax
    jne 9f
    cmpl $0, {NO_YIELD}(%rbx)
    jne 5f
    sub %r13, %r8
    cmp {BUDGET_TICKS}(%r10), %r8
    jbe 2b
    jmp 5f
8:  decl {NO_YIELD}(%rbx)
5:  mov $1, %eax
    xchg %eax, {SLEEPING}(%rbx)
6:  mov (\word), %eax
    cmp %r12d, %eax
    jne 7f
    mov \word, %rdi
    xor %esi, %esi                      /* FUTEX_WAIT */
    mov %r12d, %edx
    xor %r10d, %r10d
    mov ${SYS_futex}, %eax
    syscall
    jmp 6b
7:  movl $0, {SLEEPING}(%rbx)
9:
.endm

/* Pass control: write eax to the word at (rbx) and wake the supervisor if it sleeps. The barrier orders the write
 * before the look; an exchange would do both, but could lose the line to the supervisor before it begins.
 * Clobbers rax rcx rdx rsi rdi r11. */
.macro PUBLISH
    mov %eax, (%rbx)
    lock orl $0, {FLAVOUR}(%rbx)
    cmpl $0, {SLEEPING}(%rbp)
    je 1f
    mov %rbx, %rdi
    mov $1, %esi                        /* FUTEX_WAKE: all, as a guest may sleep there too, to be woken instead */
    mov $0x7fffffff, %edx
    mov ${SYS_futex}, %eax
    syscall
1:
.endm

/* rbp: the command that belongs to the mailbox rbx. */
.macro COMMAND_OF_MAILBOX
    mov %ebx, %ebp
    sub ${MAILBOXES}, %ebp
    shr ${MAILBOX_TO_COMMAND}, %ebp
    lea region+{COMMANDS}(%rip), %rcx
    add %rcx, %rbp
.endm

.macro SAVE from, to
    mov \from(%r8), %rax
    mov %rax, \to(%rbx)
.endm

/* Copies rax and the arguments to the line that the supervisor looks at. Clobbers rax rcx. */
.macro SHOW_CALL
    mov $7, %ecx
1:  mov {RECORD}-8(%rbx, %rcx, 8), %rax
    mov %rax, (%rbx, %rcx, 8)
    dec %ecx
    jnz 1b
.endm

/* SipHash-2-4 (Aumasson and Bernstein, 2012) of 64-bit words. The key stays in xmm0 and xmm1; r8 to r11 have the state,
 * and between two words of a message xmm2 to xmm5. rdx: the word. Nothing of it is ever in memory. */
.macro SIP_ROUND
    add %r9, %r8
    add %r11, %r10
    rol $13, %r9
    rol $16, %r11
    xor %r8, %r9
    xor %r10, %r11
    rol $32, %r8
    add %r9, %r10
    add %r11, %r8
    rol $17, %r9
    rol $21, %r11
    xor %r10, %r9
    xor %r8, %r11
    rol $32, %r10
.endm

.macro SIP_BEGIN                        /* clobbers rcx */
    movq %xmm0, %r8
    movq %xmm1, %r9
    movabs $0x6c7967656e657261, %r10
    movabs $0x7465646279746573, %r11
    xor %r8, %r10
    xor %r9, %r11
    movabs $0x736f6d6570736575, %rcx
    xor %rcx, %r8
    movabs $0x646f72616e646f6d, %rcx
    xor %rcx, %r9
.endm

.macro SIP_WORD
    xor %rdx, %r11
    SIP_ROUND
    SIP_ROUND
    xor %rdx, %r8
.endm

.macro SIP_KEEP
    movq %r8, %xmm2
    movq %r9, %xmm3
    movq %r10, %xmm4
    movq %r11, %xmm5
.endm

.macro SIP_GO_ON
    movq %xmm2, %r8
    movq %xmm3, %r9
    movq %xmm4, %r10
    movq %xmm5, %r11
.endm

.macro SIP_END words                    /* their number; the tag is left in r8; clobbers rdx */
    mov \words, %rdx
    shl $59, %rdx                       /* the length in bytes, modulo 256, in the last byte */
    SIP_WORD
    xor $0xff, %r10
    SIP_ROUND
    SIP_ROUND
    SIP_ROUND
    SIP_ROUND
    xor %r9, %r8
    xor %r10, %r8
    xor %r11, %r8
.endm

/* Clobbers rax rcx rdx rsi rdi r10 r11. */
.macro SET_SIGNAL_MASK
    mov $2, %edi                        /* SIG_SETMASK */
    lea region+{PARAMS}+{SIGMASK}(%rip), %rsi
    xor %edx, %edx
    mov $8, %r10d
    mov ${SYS_rt_sigprocmask}, %eax
    syscall
.endm

.macro REPORT kind
    mov $\kind, %r12b                   /* in place of the command's operation */
    mov %r12d, %eax
    PUBLISH
.endm

    .pushsection .rodata.process_vm_exec, "a", @progbits
    .balign 64
    .globl process_vm_exec_code
process_vm_exec_code:
    .set region, . - {CODE}

/* ---- the keeper's entry: the first slot is its own ---------------------------------------------------------- */
    mov $1, %r15d
    jmp adopt_slot

/* ---- service: executes the supervisor's system calls -------------------------------------------------------- */
/* A request's entry with a nonzero param is a clone; in the child, param says what to become. */
    .globl process_vm_exec_adopt_slot
process_vm_exec_adopt_slot:
adopt_slot:                             /* r15 = offset of the slot in the memory file + 1 */
    lea {CONTROL}-1(%r15), %r9
    lea region+{CONTROL}(%rip), %rdi
    mov ${CONTROL_LEN}, %esi
    mov $1, %edx                        /* PROT_READ */
    mov $0x11, %r10d                    /* MAP_SHARED | MAP_FIXED */
    mov ${ARENA_FD}, %r8d
    mov ${SYS_mmap}, %eax
    syscall
    mov %rax, %rbp
    lea {RESULT}-1(%r15), %r9
    lea region+{RESULT}(%rip), %rdi
    mov ${SIZE}-{RESULT}, %esi
    mov $3, %edx                        /* PROT_READ | PROT_WRITE */
    mov $0x11, %r10d
    mov ${ARENA_FD}, %r8d
    mov ${SYS_mmap}, %eax
    syscall
    mov %rax, %rbx
    mov $1, %edi                        /* PR_SET_PDEATHSIG */
    mov $9, %esi                        /* SIGKILL */
    mov ${SYS_prctl}, %eax
    syscall
    mov ${SYS_getppid}, %eax
    syscall
    lea region+{PARAMS}(%rip), %rcx
    cmp %eax, {PARENT}(%rcx)            /* did the parent die before the prctl? */
    jne leave
    movq {KEY}(%rcx), %xmm0             /* no guest runs here yet, and the supervisor wipes it before one does */
    movq {KEY}+8(%rcx), %xmm1
    mov (%rbp), %r12d

/* Here r12 is the number of the request, of which the word has the lower half. */
    .globl process_vm_exec_service
process_vm_exec_service:                /* a task of a live process comes in here, with the key */
    SIP_BEGIN
    mov %r12, %rdx
    SIP_WORD
    xor %eax, %eax                      /* the start is reported as a call that has returned 0 */
    jmp service_one_done
service_reply:
    mov {COUNT}(%rbp), %ecx
    inc %rcx
service_sign:                           /* rcx = how many words are signed */
    SIP_END %rcx
    mov %r8, {TAG}(%rbx)
    mov %r12d, %eax
    PUBLISH
    WAIT %rbp
    sub %r12d, %eax
    add %rax, %r12
    SIP_BEGIN
    mov %r12, %rdx
    SIP_WORD
    SIP_KEEP
    mov {COUNT}(%rbp), %r13d
    test %r13d, %r13d
    jz service_one
    lea {ENTRIES}(%rbp), %r14
service_next:
    mov 8(%r14), %rdi
    mov 16(%r14), %rsi
    mov 24(%r14), %rdx
    mov 32(%r14), %r10
    mov 40(%r14), %r8
    mov 48(%r14), %r9
    mov 56(%r14), %r15
    mov (%r14), %rax
    .globl process_vm_exec_service_call
process_vm_exec_service_call:
    syscall
    test %rax, %rax
    jnz service_store
    test %r15, %r15
    jz service_store
    test $1, %r15b
    jnz adopt_slot
    jmp executor_start
service_store:
    mov %r14, %rcx
    sub %rbp, %rcx
    mov %rax, (%rbx, %rcx)
    SIP_GO_ON
    mov %rax, %rdx
    SIP_WORD
    SIP_KEEP
    add ${ENTRY}, %r14
    dec %r13d
    jnz service_next
    jmp service_reply

service_one:                            /* a single call, on the words' own lines */
    mov {ONE}+8(%rbp), %rdi
    mov {ONE}+16(%rbp), %rsi
    mov {ONE}+24(%rbp), %rdx
    mov {ONE}+32(%rbp), %r10
    mov {ONE}+40(%rbp), %r8
    mov {ONE}+48(%rbp), %r9
    mov {ONE}(%rbp), %rax
    syscall
    SIP_GO_ON
service_one_done:
    mov %rax, {ONE}(%rbx)
    mov %rax, %rdx
    SIP_WORD
    mov $2, %ecx
    jmp service_sign

leave:
    mov ${SYS_exit_group}, %eax
    xor %edi, %edi
    syscall
    ud2

/* ---- executor: runs contexts ---------------------------------------------------------------------------------- */
/* Until its filter is in place it reads nothing that the guest can write. */
executor_start:                         /* r15 = its mailbox */
    mov %r15, %rbx
    COMMAND_OF_MAILBOX
    xor %edi, %edi
    mov $-1, %esi
    xor %edx, %edx
    mov ${SYS_close_range}, %eax
    syscall
    lea {ALTSTACK}(%rbp), %rdi
    xor %esi, %esi
    mov ${SYS_sigaltstack}, %eax
    syscall
    lea region+{PARAMS}(%rip), %r14
    cmpl $0, {DISPATCH}(%r14)
    je 2f
    mov $59, %edi                       /* PR_SET_SYSCALL_USER_DISPATCH */
    mov $1, %esi                        /* PR_SYS_DISPATCH_ON */
    lea region+{CODE}(%rip), %rdx
    mov $(process_vm_exec_code_end - process_vm_exec_code), %r10d
    xor %r8d, %r8d
    mov ${SYS_prctl}, %eax
    syscall
    test %rax, %rax
    jnz leave
2:  mov $1, %edi                        /* SECCOMP_SET_MODE_FILTER */
    xor %esi, %esi
    lea {FILTER}(%r14), %rdx
    mov ${SYS_seccomp}, %eax
    syscall
    test %rax, %rax
    jnz leave
    SIP_BEGIN                           /* it has the service task's key: signs that the filter is in place, */
    xor %edx, %edx                      /* under the number of no request, */
    SIP_WORD
    mov %rbx, %rdx
    SIP_WORD
    mov $2, %ecx
    SIP_END %rcx
    mov %r8, %r13
    pxor %xmm0, %xmm0                   /* and forgets the key and what could tell it before anybody can know of that: */
    pxor %xmm1, %xmm1                   /* with the signature it may be taken over at once */
    pxor %xmm2, %xmm2
    pxor %xmm3, %xmm3
    pxor %xmm4, %xmm4
    pxor %xmm5, %xmm5
    xor %r8d, %r8d
    xor %r9d, %r9d
    xor %r11d, %r11d
    xor %ecx, %ecx
    mov (%rbx), %r12d
    SET_SIGNAL_MASK
    lea {STACK_TOP}(%rbx), %rsp
    mov %r13, {STARTED_TAG}(%rbx)
    cmpl $0, {TRACED}(%r14)
    je report_done
    REPORT {DONE}
executor_traced:                        /* its tracer has contexts run here: it takes no command, whoever writes one */
    mov (%rbp), %r12d
    WAIT %rbp
    jmp executor_traced

/* Leaves through here with the guest's registers in the mailbox and its extended state live. */
report_call:
    REPORT {CALL}
    jmp executor_wait
report_trapped_call:
    SHOW_CALL
    REPORT {TRAPPED_CALL}
    jmp executor_wait
report_signal:
    SHOW_CALL
    REPORT {SIGNAL}
    jmp executor_wait
report_interrupted:
    SHOW_CALL
    REPORT {INTERRUPTED}
    jmp executor_wait
report_broken:
    REPORT {BROKEN}
    jmp executor_wait
report_done:
    REPORT {DONE}
executor_wait:
    WAIT %rbx
    mov %eax, %r12d
    mov %eax, {COMMAND_WORD}(%rbx)      /* the word's place is the report's again before long */
    cmp ${ANSWER}, %al
    jne 1f
    mov 8(%rbx), %rax
    mov %rax, {RAX}(%rbx)
    jmp resume
1:  cmp ${LOAD}, %al
    je load
    cmp ${SAVE_XSTATE}, %al
    je save_xstate
    cmp ${LOAD_XSTATE}, %al
    je load_xstate
    jmp report_broken

load:
    mov ${REGISTERS}, %ecx
1:  mov (%rbp, %rcx, 8), %rax           /* word 0 is the word, 1 the first register */
    mov %rax, {RECORD}-8(%rbx, %rcx, 8)
    dec %ecx
    jnz 1b
    movl $1, {FLAVOUR}(%rbx)
    jmp resume

save_xstate:
    lea region+{PARAMS}(%rip), %rcx
    mov {XMASK}(%rcx), %eax
    mov {XMASK}+4(%rcx), %edx
    xsave64 {XSTATE}(%rbx)
    jmp report_done

load_xstate:
    lea region+{PARAMS}(%rip), %rcx
    mov {XMASK}(%rcx), %eax
    mov {XMASK}+4(%rcx), %edx
    xrstor64 {XSTATE}(%rbx)
    jmp report_done

/* From here to resume_end nothing changes but registers, and the mailbox has them all: a signal in between sends
 * the task back to resume, so that an interrupt is seen or the signal finds guest code. */
    .globl process_vm_exec_resume
process_vm_exec_resume:
resume:
    cmpl $0, {INTERRUPT}(%rbp)
    jne report_interrupted
    cmpl $0, {PENDING}(%rbx)
    jne take_pending
    testl $0x100, {RFLAGS}(%rbx)        /* TF: iretq sets it as the last thing */
    jnz resume_full
    cmpl $0, {FLAVOUR}(%rbx)
    jne resume_full
    mov {RFLAGS}(%rbx), %edx            /* nothing since the trampoline has changed other flags than the six */
    mov %dl, %ah                        /* SF ZF AF PF CF, for sahf: popfq takes five times as long */
    shr $11, %edx
    and $1, %dl
    mov %dl, %al
    add $0x7f, %al                      /* overflows if OF was set */
    sahf
    mov {RAX}(%rbx), %rax
    mov {RDI}(%rbx), %rdi
    mov {RSI}(%rbx), %rsi
    mov {RDX}(%rbx), %rdx
    mov {R10}(%rbx), %r10
    mov {R8}(%rbx), %r8
    mov {R9}(%rbx), %r9
    mov {RIP}(%rbx), %rcx               /* as after the syscall instruction: rcx = rip, r11 = rflags */
    mov {RFLAGS}(%rbx), %r11
    mov {RSP}(%rbx), %rsp
    mov {RBP}(%rbx), %rbp
    mov {R12}(%rbx), %r12
    mov {R13}(%rbx), %r13
    mov {R14}(%rbx), %r14
    mov {R15}(%rbx), %r15
    mov {RBX}(%rbx), %rbx
    jmp *%rcx

resume_full:
    lea {STACK_TOP}(%rbx), %rsp
    pushq $2
    popfq                               /* iretq faults with NT set */
    mov {FS_BASE}(%rbx), %rax
    wrfsbase %rax
    mov {GS_BASE}(%rbx), %rax
    wrgsbase %rax
    mov {RAX}(%rbx), %rax
    mov {RDI}(%rbx), %rdi
    mov {RSI}(%rbx), %rsi
    mov {RDX}(%rbx), %rdx
    mov {R10}(%rbx), %r10
    mov {R8}(%rbx), %r8
    mov {R9}(%rbx), %r9
    mov {RBP}(%rbx), %rbp
    mov {R12}(%rbx), %r12
    mov {R13}(%rbx), %r13
    mov {R14}(%rbx), %r14
    mov {R15}(%rbx), %r15
    mov {RCX}(%rbx), %rcx
    mov {R11}(%rbx), %r11
    lea {RIP}(%rbx), %rsp
    mov {RBX}(%rbx), %rbx
    iretq
    .globl process_vm_exec_resume_end
process_vm_exec_resume_end:

take_pending:                           /* report a signal that came while the guest was stopped */
    mov $15, %ecx
1:  mov {PENDING_SIGINFO}(%rbx, %rcx, 8), %rax
    mov %rax, {SIGINFO}(%rbx, %rcx, 8)
    dec %ecx
    jns 1b
    movl $0, {PENDING}(%rbx)
    lea {STACK_TOP}(%rbx), %rsp
    call set_signal_mask
    jmp report_signal

set_signal_mask:
    SET_SIGNAL_MASK
    ret

/* ---- trampoline: rewritten call sites come here ------------------------------------------------------------------ */
/* in: rax = number, r11 = return address; everything else is the guest's, rcx is free (the kernel clobbers it).
 * Nothing under the guest's stack pointer is touched, and no flag changes before it is saved. */
    .globl process_vm_exec_trampoline
process_vm_exec_trampoline:
    rdgsbase %rcx                       /* is GS still ours? without touching a flag */
    rorx ${SIZE_BITS}, %rcx, %rcx
    mov %ecx, %ecx
    .byte 0x48, 0x8d, 0x89              /* lea -number(%rcx), %rcx, with the region's number */
    .globl process_vm_exec_number
process_vm_exec_number:
    .long 0                             /* filled in for each region: see code.rs */
    jrcxz 1f
    .globl process_vm_exec_foreign_gs
process_vm_exec_foreign_gs:
    ud2                                 /* the handler takes over: it knows the mailbox by its stack */
1:  mov %rsp, %gs:{RSP}
    rdgsbase %rcx
    prefetchw (%rcx)                    /* ours by the time the call is stored there; a no-op where it is not known */
    lea {RFLAGS}+8(%rcx), %rsp
    pushfq
    mov %r11, {RIP}(%rcx)
    mov %r11, {RCX}(%rcx)
    mov %rcx, {GS_BASE}(%rcx)
    mov %rbx, {RBX}(%rcx)
    mov %rbp, {RBP}(%rcx)
    mov %r12, {R12}(%rcx)
    mov %r13, {R13}(%rcx)
    mov %r14, {R14}(%rcx)
    mov %r15, {R15}(%rcx)
    mov %rcx, %rbx
    rdfsbase %rbp
    mov %rbp, {FS_BASE}(%rbx)
    movq ${USER_CS}, {CS}(%rbx)
    movq ${USER_SS}, {SS}(%rbx)
    movl $0, {FLAVOUR}(%rbx)
    COMMAND_OF_MAILBOX
    lea {STACK_TOP}(%rbx), %rsp
    mov {COMMAND_WORD}(%rbx), %r12d
    mov %rax, {RAX}(%rbx)
    mov %rdi, {RDI}(%rbx)
    mov %rsi, {RSI}(%rbx)
    mov %rdx, {RDX}(%rbx)
    mov %r10, {R10}(%rbx)
    mov %r8, {R8}(%rbx)
    mov %r9, {R9}(%rbx)
    mov %rax, 8(%rbx)                   /* last, all on the word's own line: the supervisor looks at it all the */
    mov %rdi, 16(%rbx)                  /* time, and would take it away between two writes */
    mov %rsi, 24(%rbx)
    mov %rdx, 32(%rbx)
    mov %r10, 40(%rbx)
    mov %r8, 48(%rbx)
    mov %r9, 56(%rbx)
    jmp report_call

/* ---- signals ----------------------------------------------------------------------------------------------------- */
/* in: edi = signal, rsi = siginfo, rdx = ucontext, rsp = frame on the alternate stack, inside the mailbox.
 * Signals that an instruction raised are not returned from: extended state is loaded from the frame, the frame is
 * left behind (their handlers block nothing). All others are blocked meanwhile and end in rt_sigreturn. */
    .globl process_vm_exec_handler
process_vm_exec_handler:
    lea 8(%rsp), %r15                   /* where rt_sigreturn wants the stack pointer */
    mov %rsp, %rbx
    and $-{MAILBOX_STRIDE}, %rbx
    COMMAND_OF_MAILBOX
    mov {COMMAND_WORD}(%rbx), %r12d
    mov %rdx, %r8
    mov {UC_RIP}(%r8), %rax
    lea region+{CODE}(%rip), %rcx
    sub %rcx, %rax
    cmp $(process_vm_exec_code_end - process_vm_exec_code), %rax
    jb signal_in_executor

    xor %r13d, %r13d
    cmp ${INTERRUPT_SIGNAL}, %edi
    jne 1f
    cmpl $0, {INTERRUPT}(%rbp)
    je sigreturn                        /* that interrupt has been seen already */
    call save_registers
    jmp 2f
1:  call save_registers
    call save_siginfo
    inc %r13d
    movabs ${SYNCHRONOUS}, %rax
    bt %rdi, %rax
    jnc 2f
    cmpl $0, 8(%rsi)                    /* si_code > 0: the kernel raised it */
    jg leave_frame
2:  lea after_sigreturn(%rip), %rax     /* came from outside: report from beyond rt_sigreturn */
    mov %rax, {UC_RIP}(%r8)
    mov %rbx, {UC_RBX}(%r8)
    mov %rbp, {UC_RBP}(%r8)
    mov %r12, {UC_R12}(%r8)
    mov %r13, {UC_R13}(%r8)
    lea {STACK_TOP}(%rbx), %rax
    mov %rax, {UC_RSP}(%r8)
    movq $0x202, {UC_RFLAGS}(%r8)
    movw ${USER_CS}, {UC_CS}(%r8)
    movw ${USER_SS}, {UC_SS}(%r8)
    jmp sigreturn

leave_frame:
    lea region+{PARAMS}(%rip), %rcx
    mov {XMASK}(%rcx), %eax
    mov {XMASK}+4(%rcx), %edx
    mov {UC_FPSTATE}(%r8), %rcx
    xrstor64 (%rcx)
    lea {STACK_TOP}(%rbx), %rsp
    cmp $31, %edi                       /* SIGSYS */
    je report_trapped_call
    jmp report_signal

after_sigreturn:
    test %r13d, %r13d
    jz report_interrupted
    jmp report_signal

signal_in_executor:                     /* rax = offset of RIP in the code */
    cmpl $0, 8(%rsi)
    jle 1f
    cmp $5, %edi                        /* SIGTRAP: the guest set TF and came here; carry on without */
    je step_in_executor
    cmp $(process_vm_exec_foreign_gs - process_vm_exec_code), %rax
    je foreign_gs
    movabs ${SYNCHRONOUS}, %rcx
    bt %rdi, %rcx
    jc report_broken
1:  cmp $(process_vm_exec_resume - process_vm_exec_code), %rax
    jb 2f
    cmp $(process_vm_exec_resume_end - process_vm_exec_code), %rax
    jae 2f
    lea resume(%rip), %rax
    mov %rax, {UC_RIP}(%r8)
    mov %rbx, {UC_RBX}(%r8)
    mov %rbp, {UC_RBP}(%r8)
    mov %r12, {UC_R12}(%r8)
2:  cmp ${INTERRUPT_SIGNAL}, %edi
    je sigreturn                        /* resume looks at the command */
    mov $15, %ecx                       /* keep it, and let the kernel keep those that follow */
3:  mov (%rsi, %rcx, 8), %rax
    mov %rax, {PENDING_SIGINFO}(%rbx, %rcx, 8)
    dec %ecx
    jns 3b
    movl $1, {PENDING}(%rbx)
    movabs ${ASYNCHRONOUS}, %rax
    mov %rax, {UC_SIGMASK}(%r8)
    jmp sigreturn

step_in_executor:
    andq $~0x100, {UC_RFLAGS}(%r8)
    jmp sigreturn

foreign_gs:                             /* a rewritten call while GS is the guest's own */
    call save_registers
    mov {R11}(%rbx), %rax
    mov %rax, {RIP}(%rbx)
    mov %rax, {RCX}(%rbx)
    mov {RFLAGS}(%rbx), %rax
    mov %rax, {R11}(%rbx)
    mov $31, %edi
    movl ${AUDIT_ARCH_X86_64}, {SIGINFO}+28(%rbx)
    jmp leave_frame

    .globl process_vm_exec_sigreturn
process_vm_exec_sigreturn:
sigreturn:
    mov %r15, %rsp
    mov ${SYS_rt_sigreturn}, %eax
    syscall
    ud2

save_registers:                         /* r8 = ucontext, rbx = mailbox; clobbers rax */
    SAVE {UC_RAX}, {RAX}
    SAVE {UC_RDI}, {RDI}
    SAVE {UC_RSI}, {RSI}
    SAVE {UC_RDX}, {RDX}
    SAVE {UC_R10}, {R10}
    SAVE {UC_R8}, {R8}
    SAVE {UC_R9}, {R9}
    SAVE {UC_RIP}, {RIP}
    SAVE {UC_RFLAGS}, {RFLAGS}
    SAVE {UC_RSP}, {RSP}
    SAVE {UC_RBX}, {RBX}
    SAVE {UC_RBP}, {RBP}
    SAVE {UC_R12}, {R12}
    SAVE {UC_R13}, {R13}
    SAVE {UC_R14}, {R14}
    SAVE {UC_R15}, {R15}
    SAVE {UC_RCX}, {RCX}
    SAVE {UC_R11}, {R11}
    movzwl {UC_CS}(%r8), %eax
    mov %rax, {CS}(%rbx)
    movzwl {UC_SS}(%r8), %eax
    mov %rax, {SS}(%rbx)
    rdfsbase %rax
    mov %rax, {FS_BASE}(%rbx)
    rdgsbase %rax
    mov %rax, {GS_BASE}(%rbx)
    movl $1, {FLAVOUR}(%rbx)
    ret

save_siginfo:                           /* r8 = ucontext, rsi = siginfo, edi = signal; clobbers rax rcx */
    mov {UC_ERR}(%r8), %rax
    mov %rax, {TRAP}(%rbx)
    mov {UC_ERR}+8(%r8), %rax
    mov %rax, {TRAP}+8(%rbx)
    mov {UC_CR2}(%r8), %rax
    mov %rax, {TRAP}+16(%rbx)
    mov $3, %ecx                        /* SIGSYS fills 32 bytes */
    cmp $31, %edi
    je 1f
    mov $15, %ecx
1:  mov (%rsi, %rcx, 8), %rax
    mov %rax, {SIGINFO}(%rbx, %rcx, 8)
    dec %ecx
    jns 1b
    ret

    .globl process_vm_exec_code_end
process_vm_exec_code_end:
    .popsection
