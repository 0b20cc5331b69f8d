//! Socket addresses, to and from the guest (unix(7), ip(7), ipv6(7)).

use std::{
    ffi::CString,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::AsFd,
};

use process_vm_exec::Errno;
use rustix::net::{SocketAddrAny, SocketAddrUnix};

use crate::{
    abi::{field, from_int, size},
    files::{AT_FDCWD, Entry, Last, Object, host_path},
    guest::GuestMemory,
    task::Task,
};

/// The longest address (`struct sockaddr_storage`).
const LEN_MAX: u64 = 128;
/// Paths start from the current directory.
const HERE: u64 = from_int(AT_FDCWD);
/// Where a path begins in `struct sockaddr_un`.
const UNIX_PATH: usize = 2;

/// An address of the host's. What its path leads through stays open as long.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) address: SocketAddrAny,
    _through: Option<Object>,
}

/// An address that the guest passed in.
#[derive(Debug)]
pub(super) struct Address(Vec<u8>);

impl Address {
    pub(super) fn fetch(task: &Task, addr: u64, len: u64) -> Result<Self, Errno> {
        let len = u64::from(crate::abi::uint(len));
        if !(2..=LEN_MAX).contains(&len) {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; size(len)];
        task.space.fetch_into(addr, &mut bytes)?;
        Ok(Self(bytes))
    }

    /// The host's address of the socket that has this one.
    pub(super) fn of_socket(&self, task: &Task) -> Result<Reached, Errno> {
        let Some(path) = self.path()? else {
            return self.for_host().map(|address| Reached { address, _through: None });
        };
        let socket = task.object_at(HERE, &path, Last::Follow)?;
        let address = SocketAddrUnix::new(socket.path())?.into();
        Ok(Reached { address, _through: Some(socket) })
    }

    /// The host's address with which to give a socket this one. Paths start from the guest's directory, which is not
    /// this process's.
    pub(super) fn to_be(&self, task: &Task) -> Result<Reached, Errno> {
        let Some(path) = self.path()? else {
            return self.for_host().map(|address| Reached { address, _through: None });
        };
        let Entry { dir, name } = task.entry_at(HERE, &path)?;
        let directory = Object::host(dir);
        let in_directory = |path: &[u8]| SocketAddrUnix::new([path, b"/", name.to_bytes()].concat());
        // The path itself, since others may ask for the socket's name; if that has no room for it, by the descriptor.
        let address = in_directory(&host_path(directory.file.as_fd())?)
            .or_else(|_| in_directory(directory.path().to_bytes()))?
            .into();
        Ok(Reached { address, _through: Some(directory) })
    }

    /// The path that a local socket has.
    fn path(&self) -> Result<Option<CString>, Errno> {
        let bytes = &self.0;
        let is_local = i32::from(u16::from_ne_bytes(field(bytes, 0))) == libc::AF_UNIX;
        match bytes.get(UNIX_PATH) {
            Some(&first) if is_local && first != 0 => {
                let path = bytes[UNIX_PATH..].split(|&byte| byte == 0).next().unwrap_or_default();
                CString::new(path).map(Some).map_err(|_| Errno::INVAL)
            }
            _ => Ok(None),
        }
    }

    /// The host's address for one without a path.
    fn for_host(&self) -> Result<SocketAddrAny, Errno> {
        let bytes = &self.0;
        let at_least = |len| if bytes.len() < len { Err(Errno::INVAL) } else { Ok(()) };
        match i32::from(u16::from_ne_bytes(field(bytes, 0))) {
            libc::AF_INET => {
                at_least(16)?;
                let port = u16::from_be_bytes(field(bytes, 2));
                Ok(SocketAddrV4::new(Ipv4Addr::from(field::<4>(bytes, 4)), port).into())
            }
            libc::AF_INET6 => {
                at_least(28)?;
                let port = u16::from_be_bytes(field(bytes, 2));
                let flow = u32::from_ne_bytes(field(bytes, 4));
                let scope = u32::from_ne_bytes(field(bytes, 24));
                Ok(SocketAddrV6::new(Ipv6Addr::from(field::<16>(bytes, 8)), port, flow, scope).into())
            }
            libc::AF_UNIX => nameless(&bytes[UNIX_PATH..]).map(Into::into),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }
}

/// The address of a local socket without a path.
fn nameless(name: &[u8]) -> Result<SocketAddrUnix, Errno> {
    match name.split_first() {
        None => Ok(SocketAddrUnix::new_unnamed()),
        Some((_, name)) => SocketAddrUnix::new_abstract_name(name),
    }
}

/// Writes `address` to `addr`, as much as the `socklen_t` at `len_addr` has room for, and its length to there.
pub(super) fn store(task: &Task, addr: u64, len_addr: u64, address: &SocketAddrAny) -> Result<(), Errno> {
    store_bytes(task, addr, len_addr, &encode(address))
}

/// Writes the address of a socket without a name.
pub(super) fn store_unnamed(task: &Task, addr: u64, len_addr: u64) -> Result<(), Errno> {
    store_bytes(task, addr, len_addr, &family(libc::AF_UNIX))
}

fn store_bytes(task: &Task, addr: u64, len_addr: u64, bytes: &[u8]) -> Result<(), Errno> {
    if addr == 0 {
        return Ok(());
    }
    let room = usize::try_from(task.space.fetch_i32(len_addr)?).map_err(|_| Errno::INVAL)?;
    task.space.store(addr, &bytes[..bytes.len().min(room)])?;
    let len = u32::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    task.space.store(len_addr, &len.to_ne_bytes())
}

fn encode(address: &SocketAddrAny) -> Vec<u8> {
    if let Ok(address) = SocketAddrV4::try_from(address.clone()) {
        let mut bytes = family(libc::AF_INET);
        bytes.extend(address.port().to_be_bytes());
        bytes.extend(address.ip().octets());
        bytes.extend([0; 8]);
        return bytes;
    }
    if let Ok(address) = SocketAddrV6::try_from(address.clone()) {
        let mut bytes = family(libc::AF_INET6);
        bytes.extend(address.port().to_be_bytes());
        bytes.extend(address.flowinfo().to_ne_bytes());
        bytes.extend(address.ip().octets());
        bytes.extend(address.scope_id().to_ne_bytes());
        return bytes;
    }
    let mut bytes = family(libc::AF_UNIX);
    if let Ok(address) = SocketAddrUnix::try_from(address.clone()) {
        if let Some(name) = address.abstract_name() {
            bytes.push(0);
            bytes.extend(name);
        } else if let Some(path) = address.path_bytes() {
            bytes.extend(path);
            bytes.push(0);
        }
    }
    bytes
}

/// The beginning of every address: its family.
fn family(family: i32) -> Vec<u8> {
    crate::abi::ushort(crate::abi::from_int(family)).to_ne_bytes().to_vec()
}
