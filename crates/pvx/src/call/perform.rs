//! A call is made in an address space: its buffers are put there, and taken out again whatever happens.

use appkernel::calls::Kind;
use std::os::fd::{AsFd, OwnedFd};

use process_vm_exec::{Call, Errno, Owner, Result, Space};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::{
    plan::{Argument, Plan},
    word::Value,
};
use crate::live::{Calls, with_scratch};

/// What became of a call.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The arguments as they were passed.
    pub(crate) args: Vec<u64>,
    pub(crate) result: std::result::Result<u64, Errno>,
    /// What the call left in memory, if it succeeded.
    pub(crate) buffers: Vec<Buffer>,
}

/// What a call left for one of its arguments.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Which argument, from 0 on.
    pub(crate) index: usize,
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
}

/// Buffers begin at multiples of this, which is enough for any type of C (x86-64 psABI, 3.1.2).
const ALIGNMENT: u64 = 16;

/// Makes the call. The space's memory is as it was then, but for what the call itself changed.
///
/// # Errors
/// If the call could not be made, or what it needs not be put there.
pub(crate) fn perform(space: &impl Calls, plan: &Plan, files: Owner) -> Result<Outcome> {
    let len = plan.args.iter().map(room).sum();
    with_scratch(space, len, |scratch| {
        let args = place(space, plan, scratch)?;
        let mut registers = [0; 6];
        registers[..args.len()].copy_from_slice(&args);
        let call = Call::with_args(plan.call, registers);
        let copies = match files {
            Owner::Caller => copies_of_descriptors(&call),
            Owner::Target => Ok(Vec::new()),
        };
        // Unlike a single call, a batch tells an errno of the call from one of ours.
        let result = match copies {
            Ok(copies) => {
                let passed =
                    copies.iter().fold(call, |call, (argument, copy)| call.fd(*argument, copy.as_fd()));
                space.make(&[passed])?[0]
            }
            Err(errno) => Err(errno),
        };
        let buffers = match result {
            Ok(value) => collect(space, plan, &args, value)?,
            Err(_) => Vec::new(),
        };
        Ok(Outcome { args, result, buffers })
    })
}

/// A copy of each descriptor of pvx's own that the call names by its number.
fn copies_of_descriptors(call: &Call<'_>) -> std::result::Result<Vec<(usize, OwnedFd)>, Errno> {
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    let copy = |argument: usize| {
        // The kernel takes the lower half for the number.
        let number = i32::try_from(call.args()[argument] & 0xffff_ffff).map_err(|_| Errno::BADF)?;
        Ok((argument, pidfd_getfd(&ourselves, number, PidfdGetfdFlags::empty())?))
    };
    call.descriptor_arguments().map(copy).collect()
}

/// How many bytes of scratch memory an argument takes.
fn room(argument: &Argument) -> u64 {
    let len = match &argument.value {
        Value::In(bytes) => bytes.len(),
        Value::Out(len) => *len,
        Value::Number(_) | Value::Ours => return 0,
    };
    // An empty buffer has an address, too.
    (len.max(1) as u64).next_multiple_of(ALIGNMENT)
}

/// Writes what goes in, and returns the arguments' registers.
fn place(space: &Space, plan: &Plan, scratch: u64) -> Result<Vec<u64>> {
    let mut free = scratch;
    let mut args = Vec::new();
    for argument in &plan.args {
        if let Value::In(bytes) = &argument.value
            && !bytes.is_empty()
        {
            space.write(free, bytes)?;
        }
        args.push(match argument.value {
            Value::Number(value) => value,
            _ => free,
        });
        free += room(argument);
    }
    Ok(args)
}

/// Reads what the call left, `value` being its result.
fn collect(space: &Space, plan: &Plan, args: &[u64], value: u64) -> Result<Vec<Buffer>> {
    let mut buffers = Vec::new();
    for (index, argument) in plan.args.iter().enumerate() {
        if let (Value::In(before), Kind::Hex) = (&argument.value, argument.kind) {
            // The table does not say what this is. It is worth a look if the call changed it.
            let mut bytes = vec![0; before.len()];
            space.read(args[index], &mut bytes)?;
            if bytes != *before {
                buffers.push(Buffer { index, kind: argument.kind, bytes });
            }
            continue;
        }
        let Some(room) = shown_room(argument, args[index], value) else { continue };
        let len = match argument.kind {
            Kind::Data => room.min(usize::try_from(value).unwrap_or(room)),
            Kind::Out(_) if plan.args.get(index + 1).is_some_and(|next| next.kind == Kind::Length) => {
                room.min(read_length(space, args[index + 1])?)
            }
            _ => room,
        };
        if len > 0 {
            let mut bytes = vec![0; len];
            space.read(args[index], &mut bytes)?;
            buffers.push(Buffer { index, kind: argument.kind, bytes });
        }
    }
    Ok(buffers)
}

/// How many bytes of an argument may be shown: of our own buffer all, at an address of the user's as many as the call
/// says or its record has.
fn shown_room(argument: &Argument, address: u64, value: u64) -> Option<usize> {
    match (&argument.value, argument.kind) {
        (Value::Out(len), _) => Some(*len),
        (Value::Number(_), _) if address == 0 => None,
        (Value::Number(_), Kind::Out(record)) => Some(record.len),
        (Value::Number(_), Kind::OutInts) => Some(8),
        (Value::Number(_), Kind::Data) => usize::try_from(value).ok(),
        _ => None,
    }
}

fn read_length(space: &Space, address: u64) -> Result<usize> {
    let mut len = [0; 4];
    if address != 0 {
        space.read(address, &mut len)?;
    }
    Ok(usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use process_vm_exec::{AddressSpace, ServiceCalls};

    use super::*;

    /// A created space stands for the process that a call is made in.
    fn space() -> AddressSpace {
        AddressSpace::builder().service_calls(ServiceCalls::All).create().unwrap()
    }

    fn outcome(space: &AddressSpace, line: &str) -> Outcome {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let plan = Plan::new(&words[0], &words[1..]).expect("the line is right");
        perform(space, &plan, Owner::Target).expect("the call is made")
    }

    fn maps(space: &AddressSpace) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", space.pid().expect("a live space").as_raw_pid()))
            .expect("it has maps")
    }

    #[test]
    fn a_call_is_made_in_the_space() {
        let space = space();
        let outcome = outcome(&space, "getpid");
        assert_eq!(
            outcome.result,
            Ok(u64::try_from(space.pid().expect("a live space").as_raw_pid()).unwrap())
        );
        assert!(outcome.buffers.is_empty());
    }

    #[test]
    fn what_a_call_leaves_is_read_and_nothing_stays_mapped() {
        let space = space();
        let before = maps(&space);
        let outcome = outcome(&space, "getcwd");
        let path = &outcome.buffers[0].bytes;
        assert_eq!(path.first(), Some(&b'/'));
        assert_eq!(outcome.result, Ok(path.len() as u64));
        assert_eq!(maps(&space), before);
    }

    #[test]
    fn a_failed_call_leaves_nothing_mapped_either() {
        let space = space();
        let before = maps(&space);
        let failed = outcome(&space, "readlink /no/such/link");
        assert_eq!(failed.result, Err(Errno::NOENT));
        assert!(failed.buffers.is_empty());
        assert_eq!(maps(&space), before);
    }

    #[test]
    fn what_goes_in_comes_out() {
        let space = space();
        let ends = outcome(&space, "pipe");
        let [reader, writer] = [0, 4].map(|at| ends.buffers[0].bytes[at]);
        assert_eq!(outcome(&space, &format!("write {writer} hello")).result, Ok(5));
        let read = outcome(&space, &format!("read {reader}"));
        assert_eq!(read.buffers[0].bytes, b"hello");
        assert_eq!(outcome(&space, &format!("write {writer} @hex:00ff")).result, Ok(2));
        assert_eq!(outcome(&space, &format!("read {reader} _ 1")).buffers[0].bytes, [0]);
    }

    #[test]
    fn a_length_that_the_call_returns_cuts_its_buffer() {
        let space = space();
        let socket = outcome(&space, "socket AF_UNIX SOCK_STREAM 0").result.unwrap();
        let name = outcome(&space, &format!("getsockname {socket}"));
        // An unnamed socket has a family and nothing else (unix(7)).
        assert_eq!(name.buffers[0].bytes, [1, 0]);
    }

    #[test]
    fn memory_of_the_users_is_used_where_an_address_is_given() {
        let space = space();
        let page =
            outcome(&space, "mmap 0 4096 PROT_READ|PROT_WRITE MAP_PRIVATE|MAP_ANONYMOUS -1").result.unwrap();
        let time = outcome(&space, &format!("clock_gettime CLOCK_MONOTONIC {page:#x}"));
        let mut there = [0; 16];
        space.read(page, &mut there).unwrap();
        assert_eq!(time.buffers[0].bytes, there);
        assert_eq!(outcome(&space, &format!("madvise {page:#x} 4096 MADV_DONTNEED")).result, Ok(0));
        space.read(page, &mut there).unwrap();
        assert_eq!(there, [0; 16]);
    }

    #[test]
    fn bytes_that_the_call_changes_are_read_back() {
        let space = space();
        // A struct pollfd (poll(2)) of a descriptor that is not open: the call sets POLLNVAL.
        let polled = outcome(&space, "poll @hex:ff03000001000000 1 0");
        assert_eq!(polled.result, Ok(1));
        assert_eq!(polled.buffers[0].bytes, [0xff, 3, 0, 0, 1, 0, 0x20, 0]);
        let slept = outcome(&space, "clock_nanosleep CLOCK_MONOTONIC 0 0.001");
        assert!(slept.buffers.is_empty());
    }

    #[test]
    fn an_empty_string_has_an_address() {
        let space = space();
        let plan = Plan::new("open", &[String::new(), "O_RDONLY".to_owned()]).unwrap();
        assert_eq!(perform(&space, &plan, Owner::Target).unwrap().result, Err(Errno::NOENT));
    }
}
