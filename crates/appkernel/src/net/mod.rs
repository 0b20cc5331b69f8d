//! Sockets, of the host's: local ones and those of the Internet, for data without ancillary messages.

mod address;
mod options;

use process_vm_exec::Errno;
use rustix::{
    event::PollFlags,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, acceptfrom_with,
        recvfrom, sendto, socket_with,
    },
};

use crate::{
    abi::{Answer, Args, field, from_int, int, size, u64_at, uint, ushort},
    files::{Cloexec, io::raise_sigpipe},
    guest::GuestMemory,
    task::Task,
};
use address::Address;
pub(crate) use options::{getsockopt, setsockopt};

/// The most data of one message; more than any protocol's.
const MESSAGE_MAX: u64 = 1 << 20;
/// The flags in the type of a new socket; the rest is the type itself (`SOCK_TYPE_MASK`).
const TYPE_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// The family, type, flags and protocol of a new socket.
fn kind(
    family: u64,
    kind: u64,
    protocol: u64,
) -> Result<(AddressFamily, SocketType, SocketFlags, Option<Protocol>), Errno> {
    let flags = SocketFlags::from_bits_retain((int(kind) & TYPE_FLAGS).cast_unsigned());
    let family = match int(family) {
        libc::AF_UNIX | libc::AF_INET | libc::AF_INET6 => AddressFamily::from_raw(ushort(family)),
        _ => return Err(Errno::AFNOSUPPORT),
    };
    let protocol = std::num::NonZeroU32::new(uint(protocol)).map(Protocol::from_raw);
    let kind = SocketType::from_raw((int(kind) & !TYPE_FLAGS).cast_unsigned());
    Ok((family, kind, flags | SocketFlags::CLOEXEC, protocol))
}

/// socket(2)
pub(crate) fn socket(task: &mut Task, [family, socket_type, protocol, ..]: Args) -> Answer {
    let (family, kind, flags, protocol) = kind(family, socket_type, protocol)?;
    let file = socket_with(family, kind, flags, protocol)?;
    task.files.insert(file, Cloexec::from_flags(int(socket_type))).map(from_int)
}

/// socketpair(2)
pub(crate) fn socketpair(task: &mut Task, [family, socket_type, protocol, ends, ..]: Args) -> Answer {
    let cloexec = Cloexec::from_flags(int(socket_type));
    let (family, kind, flags, protocol) = kind(family, socket_type, protocol)?;
    let (one, other) = rustix::net::socketpair(family, kind, flags, protocol)?;
    task.insert_pair(ends, one, other, cloexec)
}

/// connect(2)
pub(crate) fn connect(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    let address = Address::fetch(task, addr, len)?;
    rustix::net::connect(task.files.get(int(fd))?, &address.of_socket(task)?.address).map(|()| 0)
}

/// bind(2)
pub(crate) fn bind(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    let address = Address::fetch(task, addr, len)?;
    rustix::net::bind(task.files.get(int(fd))?, &address.to_be(task)?.address).map(|()| 0)
}

/// listen(2)
pub(crate) fn listen(task: &mut Task, [fd, backlog, ..]: Args) -> Answer {
    rustix::net::listen(task.files.get(int(fd))?, int(backlog)).map(|()| 0)
}

/// accept(2)
pub(crate) fn accept(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    accept4(task, [fd, addr, len, 0, 0, 0])
}

/// accept4(2)
pub(crate) fn accept4(task: &mut Task, [fd, addr, len, flags, ..]: Args) -> Answer {
    task.wait_until_ready(int(fd), PollFlags::IN)?;
    let host_flags = SocketFlags::from_bits_retain(uint(flags)) | SocketFlags::CLOEXEC;
    let (file, peer) = acceptfrom_with(task.files.get(int(fd))?, host_flags)?;
    if let Some(peer) = peer {
        address::store(task, addr, len, &peer)?;
    }
    task.files.insert(file, Cloexec::from_flags(int(flags))).map(from_int)
}

/// getsockname(2)
pub(crate) fn getsockname(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    let name = rustix::net::getsockname(task.files.get(int(fd))?)?;
    address::store(task, addr, len, &name).map(|()| 0)
}

/// getpeername(2)
pub(crate) fn getpeername(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    match rustix::net::getpeername(task.files.get(int(fd))?)? {
        Some(name) => address::store(task, addr, len, &name).map(|()| 0),
        None => address::store_unnamed(task, addr, len).map(|()| 0),
    }
}

/// shutdown(2)
pub(crate) fn shutdown(task: &mut Task, [fd, how, ..]: Args) -> Answer {
    let how = match int(how) {
        libc::SHUT_RD => Shutdown::Read,
        libc::SHUT_WR => Shutdown::Write,
        libc::SHUT_RDWR => Shutdown::Both,
        _ => return Err(Errno::INVAL),
    };
    rustix::net::shutdown(task.files.get(int(fd))?, how).map(|()| 0)
}

/// sendto(2)
pub(crate) fn send_to(task: &mut Task, [fd, data, len, flags, addr, addr_len]: Args) -> Answer {
    task.wait_until_ready(int(fd), PollFlags::OUT)?;
    let mut bytes = vec![0; size(len.min(MESSAGE_MAX))];
    task.space.fetch_into(data, &mut bytes)?;
    send(task, int(fd), &bytes, uint(flags), addr, addr_len)
}

/// sendmsg(2), without ancillary data
pub(crate) fn sendmsg(task: &mut Task, [fd, message, flags, ..]: Args) -> Answer {
    let header: [u8; 56] = task.space.fetch(message)?;
    if u64_at(&header, 40) != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    task.wait_until_ready(int(fd), PollFlags::OUT)?;
    let mut bytes = Vec::new();
    for span in task.space.fetch_vector(u64_at(&header, 16), u64_at(&header, 24))? {
        let start = bytes.len();
        bytes.resize(start + size(span.len.min(MESSAGE_MAX - start as u64)), 0);
        task.space.fetch_into(span.addr, &mut bytes[start..])?;
    }
    let name_len = u32::from_ne_bytes(field(&header, 8));
    send(task, int(fd), &bytes, uint(flags), u64_at(&header, 0), name_len.into())
}

fn send(task: &mut Task, fd: i32, bytes: &[u8], flags: u32, addr: u64, addr_len: u64) -> Answer {
    let quiet = flags & libc::MSG_NOSIGNAL.cast_unsigned() != 0;
    let flags = SendFlags::from_bits_retain(flags) | SendFlags::NOSIGNAL;
    let file = task.files.get(fd)?;
    let answer = if addr == 0 {
        rustix::net::send(file, bytes, flags)
    } else {
        let reached = Address::fetch(task, addr, addr_len)?.of_socket(task)?;
        sendto(file, bytes, flags, &reached.address)
    }
    .map(|count| count as u64);
    if quiet { answer } else { raise_sigpipe(task, answer) }
}

/// recvfrom(2)
pub(crate) fn receive_from(task: &mut Task, [fd, data, len, flags, addr, addr_len]: Args) -> Answer {
    task.wait_until_ready(int(fd), PollFlags::IN)?;
    let mut bytes = vec![0; size(len.min(MESSAGE_MAX))];
    let flags = RecvFlags::from_bits_retain(uint(flags));
    let (kept, count, peer) = recvfrom(task.files.get(int(fd))?, &mut bytes[..], flags)?;
    task.space.store(data, &bytes[..kept])?;
    if let Some(peer) = peer {
        address::store(task, addr, addr_len, &peer)?;
    }
    Ok(count as u64)
}

/// recvmsg(2); ancillary data is dropped, as it is for a program without room for it
pub(crate) fn recvmsg(task: &mut Task, [fd, message, flags, ..]: Args) -> Answer {
    let header: [u8; 56] = task.space.fetch(message)?;
    task.wait_until_ready(int(fd), PollFlags::IN)?;
    let spans = task.space.fetch_vector(u64_at(&header, 16), u64_at(&header, 24))?;
    let total = spans.iter().fold(0u64, |total, span| total.saturating_add(span.len));
    let mut bytes = vec![0; size(total.min(MESSAGE_MAX))];
    let flags = RecvFlags::from_bits_retain(uint(flags));
    let (kept, count, peer) = recvfrom(task.files.get(int(fd))?, &mut bytes[..], flags)?;
    let mut rest = &bytes[..kept];
    for span in spans {
        let (part, after) = rest.split_at(rest.len().min(size(span.len)));
        task.space.store(span.addr, part)?;
        rest = after;
    }
    match peer {
        // The length of the name is at offset 8 of struct msghdr.
        Some(peer) if u64_at(&header, 0) != 0 => {
            address::store(task, u64_at(&header, 0), message + 8, &peer)?;
        }
        _ => task.space.store(message + 8, &[0; 4])?,
    }
    let result = if count > kept { libc::MSG_TRUNC } else { 0 };
    task.space.store(message + 40, &0u64.to_ne_bytes())?;
    task.space.store(message + 48, &result.to_ne_bytes())?;
    Ok(count as u64)
}
