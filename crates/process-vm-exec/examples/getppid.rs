//! The smallest supervisor: answers a guest that makes one system call over and over, and says what that costs.

use std::time::Instant;

use process_vm_exec::{AddressSpace, Context, Exit, Mapping, Protection, SignalSet, Sysno};

/// `1: mov $110, %eax; syscall; jmp 1b`
const LOOP: [u8; 9] = [0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
const ROUNDS: u32 = 100_000;

fn main() -> process_vm_exec::Result<()> {
    let space = AddressSpace::create()?;
    let code = space.map(Mapping::anonymous(4096, Protection::READ | Protection::WRITE))?;
    space.write(code, &LOOP)?;
    space.protect(code, 4096, Protection::READ | Protection::EXEC)?;

    let mut ctx = Context::new(code, 0);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        match space.run(&mut ctx, &SignalSet::all())? {
            Exit::Syscall
                if Sysno::new(ctx.syscall().nr.try_into().unwrap_or(usize::MAX)) == Some(Sysno::getppid) =>
            {
                ctx.set_return(Ok(1));
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
    println!("{}: {:?} a call", space.engine(), start.elapsed() / ROUNDS);
    Ok(())
}
