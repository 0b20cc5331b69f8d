//! Socket options (socket(7), tcp(7), ipv6(7)), those that programs commonly set.

use process_vm_exec::Errno;
use rustix::net::sockopt;

use crate::{
    abi::{Answer, Args, int},
    guest::GuestMemory,
    task::Task,
};

/// setsockopt(2)
pub(crate) fn setsockopt(task: &mut Task, [fd, level, option, addr, len, _]: Args) -> Answer {
    let file = task.files.get(int(fd))?;
    if int(len) < 4 {
        return Err(Errno::INVAL);
    }
    let value = task.space.fetch_i32(addr)?;
    let size = usize::try_from(value);
    match (int(level), int(option)) {
        (libc::SOL_SOCKET, libc::SO_REUSEADDR) => sockopt::set_socket_reuseaddr(file, value != 0)?,
        (libc::SOL_SOCKET, libc::SO_REUSEPORT) => sockopt::set_socket_reuseport(file, value != 0)?,
        (libc::SOL_SOCKET, libc::SO_BROADCAST) => sockopt::set_socket_broadcast(file, value != 0)?,
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => sockopt::set_socket_keepalive(file, value != 0)?,
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
            sockopt::set_socket_send_buffer_size(file, size.map_err(|_| Errno::INVAL)?)?;
        }
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
            sockopt::set_socket_recv_buffer_size(file, size.map_err(|_| Errno::INVAL)?)?;
        }
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => sockopt::set_tcp_nodelay(file, value != 0)?,
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => sockopt::set_ipv6_v6only(file, value != 0)?,
        _ => return Err(Errno::NOPROTOOPT),
    }
    Ok(0)
}

/// getsockopt(2)
pub(crate) fn getsockopt(task: &mut Task, [fd, level, option, addr, len, _]: Args) -> Answer {
    let file = task.files.get(int(fd))?;
    let size = |size: usize| i32::try_from(size).map_err(|_| Errno::INVAL);
    let value = match (int(level), int(option)) {
        (libc::SOL_SOCKET, libc::SO_ERROR) => match sockopt::socket_error(file)? {
            Ok(()) => 0,
            Err(errno) => errno.raw_os_error(),
        },
        (libc::SOL_SOCKET, libc::SO_TYPE) => sockopt::socket_type(file)?.as_raw().cast_signed(),
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => sockopt::socket_domain(file)?.as_raw().into(),
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => {
            sockopt::socket_protocol(file)?.map_or(0, |protocol| protocol.as_raw().get().cast_signed())
        }
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => sockopt::socket_acceptconn(file)?.into(),
        (libc::SOL_SOCKET, libc::SO_REUSEADDR) => sockopt::socket_reuseaddr(file)?.into(),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => sockopt::socket_keepalive(file)?.into(),
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => size(sockopt::socket_send_buffer_size(file)?)?,
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => size(sockopt::socket_recv_buffer_size(file)?)?,
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => sockopt::tcp_nodelay(file)?.into(),
        _ => return Err(Errno::NOPROTOOPT),
    };
    if task.space.fetch_i32(len)? < 4 {
        return Err(Errno::INVAL);
    }
    task.space.store(addr, &value.to_ne_bytes())?;
    task.space.store(len, &4i32.to_ne_bytes())?;
    Ok(0)
}
