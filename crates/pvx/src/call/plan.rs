//! From the words of a command line to a call: its name, its arguments, and what is filled in for the user.

use appkernel::calls::{Kind, kinds};
use process_vm_exec::Sysno;

use super::word::{MAX_BUFFER, Value, nearest, parse};

/// A call that can be made.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) call: Sysno,
    /// At most six. None is [`Value::Ours`].
    pub(crate) args: Vec<Argument>,
}

/// An argument, and what it is to the call.
#[derive(Debug)]
pub(crate) struct Argument {
    pub(crate) kind: Kind,
    pub(crate) value: Value,
}

/// The size of buffers for which neither the user nor the call has one.
const USUAL_BUFFER: usize = 4096;
/// The size of a set of signals (rt_sigprocmask(2): the C library passes it for its callers).
const SIGSET_SIZE: u64 = 8;
/// What calls that are not in the table can take.
const UNKNOWN: &[Kind] = &[Kind::Hex; 6];

impl Plan {
    /// Reads a command line. Says in one line what is wrong with it, and what to do; nothing has been touched then.
    pub(crate) fn new(name: &str, words: &[String]) -> Result<Self, String> {
        let call = find(name)?;
        if let Some(why) = refusal(call) {
            return Err(format!("{name} {why}"));
        }
        let kinds = kinds(call).unwrap_or(UNKNOWN);
        if words.len() > kinds.len() {
            let most = match kinds.len() {
                0 => "no arguments".to_owned(),
                1 => "one argument at most".to_owned(),
                most => format!("{most} arguments at most"),
            };
            return Err(format!("{name} takes {most}, but {} are given; leave some out", words.len()));
        }
        let mut values = vec![Value::Ours; kinds.len()];
        for (index, word) in words.iter().enumerate() {
            values[index] = parse(kinds[index], word)
                .map_err(|why| format!("argument {} of {name}: {why}", index + 1))?;
        }
        if let Some(index) = (words.len()..kinds.len()).find(|&index| is_needed(kinds, &values, index)) {
            let what = in_words(kinds[index]);
            return Err(format!("{name}: argument {}, {what}, is missing; give it, or _ for 0", index + 1));
        }
        let args = (0..kinds.len()).map(|index| fill(kinds, &values, index)).collect::<Result<_, _>>();
        Ok(Self { call, args: args.map_err(|why| format!("{name}: {why}"))? })
    }
}

fn find(name: &str) -> Result<Sysno, String> {
    name.parse().map_err(|_| match nearest(name, Sysno::iter().map(|call| call.name())) {
        Some(nearest) => format!("unknown system call `{name}`; did you mean {nearest}?"),
        None => format!("unknown system call `{name}`; give its name as syscalls(2) lists it"),
    })
}

/// Why a call makes no sense here: it would do something to the executor, and nothing to the target.
fn refusal(call: Sysno) -> Option<&'static str> {
    Some(match call {
        Sysno::execve | Sysno::execveat => {
            "would replace the executor and not the target's program; start the program in another way"
        }
        Sysno::exit | Sysno::exit_group => {
            "would end the executor and not the target; use `kill` to end the target"
        }
        Sysno::fork | Sysno::vfork | Sysno::clone | Sysno::clone3 => {
            "would copy the executor, and the copy would run without anybody to guide it; start a process in another way"
        }
        Sysno::rt_sigreturn => {
            "would load registers from nowhere into the executor; there is no signal to return from"
        }
        Sysno::rseq | Sysno::set_robust_list | Sysno::set_tid_address | Sysno::arch_prctl => {
            "would change what belongs to the executor's own thread, and no other; it cannot reach the target's threads"
        }
        _ => return None,
    })
}

/// Is the argument `index` one that nobody but the user can know? 0 is a descriptor, and permissions of nobody.
fn is_needed(kinds: &[Kind], values: &[Value], index: usize) -> bool {
    match kinds[index] {
        Kind::Int | Kind::Long | Kind::Dir | Kind::Path | Kind::Text | Kind::Signal => true,
        Kind::Bits(_) | Kind::One(_) | Kind::OpenFlags => true,
        // Of a file that is not made.
        Kind::Octal => !kinds.contains(&Kind::OpenFlags),
        Kind::Size => neighbours(index).all(|neighbour| !is_buffer(kinds, values, neighbour)),
        _ => false,
    }
}

/// What an argument is that nobody but the user can know.
fn in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Path => "a path",
        Kind::Text => "the bytes",
        Kind::Dir => "a directory's descriptor or AT_FDCWD",
        Kind::Signal => "a signal",
        Kind::Octal => "permissions",
        Kind::Size => "a size",
        Kind::Bits(_) | Kind::OpenFlags => "flags",
        Kind::One(_) => "a constant",
        _ => "a number or descriptor",
    }
}

/// The arguments beside `index`, the one before it first.
fn neighbours(index: usize) -> impl Iterator<Item = usize> {
    index.checked_sub(1).into_iter().chain([index + 1])
}

/// Has the argument a size that another one can be?
fn is_buffer(kinds: &[Kind], values: &[Value], index: usize) -> bool {
    matches!(
        (kinds.get(index), values.get(index)),
        (_, Some(Value::In(_) | Value::Out(_))) | (Some(Kind::Data | Kind::Out(_)), Some(Value::Ours))
    )
}

/// The argument `index`, where need be made up from its neighbours.
fn fill(kinds: &[Kind], values: &[Value], index: usize) -> Result<Argument, String> {
    let kind = kinds[index];
    let value = match &values[index] {
        Value::Ours => match kind {
            Kind::Data | Kind::OutInts | Kind::Out(_) => Value::Out(room(kinds, values, index)?),
            Kind::Length => {
                let len = index.checked_sub(1).map_or(Ok(0), |buffer| room(kinds, values, buffer))?;
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                Value::In(len.to_le_bytes().to_vec())
            }
            Kind::SigsetSize => Value::Number(SIGSET_SIZE),
            Kind::Size => Value::Number(size_of_neighbour(kinds, values, index)?),
            _ => Value::Number(0),
        },
        given => given.clone(),
    };
    Ok(Argument { kind, value })
}

/// How many bytes the buffer `index` has: what the size beside it says, or what belongs into it.
fn room(kinds: &[Kind], values: &[Value], index: usize) -> Result<usize, String> {
    if let Value::Out(len) = values[index] {
        return Ok(len);
    }
    let size_at = |neighbour: usize| match (kinds.get(neighbour), values.get(neighbour)) {
        (Some(Kind::Size), Some(&Value::Number(size))) => Some(size),
        _ => None,
    };
    let given = size_at(index + 1).or_else(|| index.checked_sub(1).and_then(size_at));
    match (given, kinds[index]) {
        (Some(size), _) => match usize::try_from(size) {
            Ok(size @ 0..=MAX_BUFFER) => Ok(size),
            _ => Err(format!("a buffer of {size} bytes is too large; give at most {MAX_BUFFER}")),
        },
        (None, Kind::Out(record)) => Ok(record.len),
        (None, Kind::OutInts) => Ok(8),
        (None, _) => Ok(USUAL_BUFFER),
    }
}

/// What an omitted size must be: that of the buffer before it, or else behind it.
fn size_of_neighbour(kinds: &[Kind], values: &[Value], index: usize) -> Result<u64, String> {
    for neighbour in neighbours(index) {
        let size = match (kinds.get(neighbour), values.get(neighbour)) {
            (_, Some(Value::In(bytes))) => bytes.len(),
            (_, Some(Value::Out(len))) => *len,
            (Some(Kind::Data | Kind::Out(_)), Some(Value::Ours)) => room(kinds, values, neighbour)?,
            _ => continue,
        };
        return Ok(size as u64);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Plan::new(&words[0], &words[1..])
    }

    #[track_caller]
    fn values(line: &str) -> Vec<Value> {
        plan(line).expect("it is right").args.into_iter().map(|argument| argument.value).collect()
    }

    #[track_caller]
    fn wrong(line: &str) -> String {
        plan(line).expect_err("it is wrong")
    }

    #[test]
    fn buffers_and_sizes_that_are_left_out_are_filled_in() {
        assert_eq!(values("getcwd"), [Value::Out(4096), Value::Number(4096)]);
        assert_eq!(values("getcwd _ 10"), [Value::Out(10), Value::Number(10)]);
        assert_eq!(values("getcwd @out:10"), [Value::Out(10), Value::Number(10)]);
        assert_eq!(values("getcwd 0x1000 10"), [Value::Number(0x1000), Value::Number(10)]);
        assert_eq!(values("getrlimit RLIMIT_NOFILE"), [Value::Number(7), Value::Out(16)]);
        assert_eq!(values("sched_getaffinity 0"), [Value::Number(0), Value::Number(128), Value::Out(128)]);
        assert_eq!(values("sched_getaffinity 0 8"), [Value::Number(0), Value::Number(8), Value::Out(8)]);
        assert_eq!(values("write 1 hi"), [Value::Number(1), Value::In(b"hi".to_vec()), Value::Number(2)]);
        assert_eq!(values("write 1 @hex:0001")[2], Value::Number(2));
        assert_eq!(values("write 1 @hex:0001 1")[2], Value::Number(1));
    }

    #[test]
    fn signals_and_sockets_get_the_sizes_that_libraries_fill_in() {
        assert_eq!(values("rt_sigaction SIGINT")[3], Value::Number(8));
        assert_eq!(values("getsockname 3")[2], Value::In(128u32.to_le_bytes().to_vec()));
    }

    #[test]
    fn addresses_and_offsets_that_are_left_out_are_0() {
        assert_eq!(values("fcntl 3 F_GETFD"), [Value::Number(3), Value::Number(1), Value::Number(0)]);
        assert_eq!(values("open /etc/hostname O_RDONLY")[2], Value::Number(0));
        assert_eq!(values("getpid"), []);
    }

    #[test]
    fn numbers_that_only_the_user_knows_must_be_given() {
        for (line, missing) in [
            ("close", "1, a number or descriptor,"),
            ("dup2 1", "2, a number or descriptor,"),
            ("kill 1", "2, a signal,"),
            ("chmod /etc/hostname", "2, permissions,"),
            ("mprotect 0x1000 4096", "3, flags,"),
            ("fcntl 1", "2, a constant,"),
            ("munmap 0x1000", "2, a size,"),
            ("open", "1, a path,"),
            ("write 1", "2, the bytes,"),
            ("openat", "1, a directory's descriptor or AT_FDCWD,"),
            ("socket AF_UNIX SOCK_STREAM", "3, a number or descriptor,"),
        ] {
            let expected = format!("argument {missing} is missing; give it, or _ for 0");
            assert!(wrong(line).ends_with(&expected), "{line}: {}", wrong(line));
        }
        assert_eq!(values("close _"), [Value::Number(0)]);
    }

    #[test]
    fn a_size_beyond_reason_is_refused() {
        assert!(wrong("read 3 _ 0x7fffffffffff").contains("too large; give at most"));
    }

    #[test]
    fn too_many_arguments_are_counted() {
        assert_eq!(wrong("getpid 1"), "getpid takes no arguments, but 1 are given; leave some out");
        assert_eq!(wrong("dup2 1 2 3"), "dup2 takes 2 arguments at most, but 3 are given; leave some out");
        assert!(wrong("io_uring_setup 1 2 3 4 5 6 7").contains("6 arguments at most"));
    }

    #[test]
    fn an_unknown_call_comes_with_the_nearest_one() {
        assert!(wrong("getpidd").contains("did you mean getpid?"));
        assert!(wrong("frobnicate_the_bits").contains("syscalls(2)"));
    }

    #[test]
    fn calls_that_would_only_hurt_the_executor_are_refused() {
        for name in
            ["execve", "execveat", "exit", "exit_group", "fork", "vfork", "clone", "clone3", "rt_sigreturn"]
        {
            assert!(wrong(name).contains("would"), "{name}");
        }
    }

    #[test]
    fn a_wrong_argument_is_named_by_its_place() {
        assert!(
            wrong("madvise 0x1000 4096 MADV_DONTNED").starts_with("argument 3 of madvise: unknown constant")
        );
        assert!(wrong("close five").starts_with("argument 1 of close:"));
    }
}
