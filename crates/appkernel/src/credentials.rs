//! Who the guest is: its user, groups and capabilities, which are the supervisor's (credentials(7)).
//!
//! The host checks the supervisor's rights when it opens files for the guest, so a guest cannot be somebody else. A
//! change that would make a difference fails with `EPERM`, as it does for those who may not make it; nothing that a
//! program gives up is left to it under the pretence that it is gone.

use process_vm_exec::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{
    abi::{Answer, Args, Record, errno, int, u32_at, uint},
    guest::GuestMemory,
    task::Task,
};

/// The most groups of a process (`NGROUPS_MAX`, linux/limits.h).
const GROUPS_MAX: usize = 65536;
/// "As it is", in calls that set several ids, and no id in others.
const UNCHANGED: u32 = u32::MAX;

/// The real, effective and saved id of a user or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ids {
    real: u32,
    effective: u32,
    saved: u32,
}

impl Ids {
    fn users() -> Result<Self, Errno> {
        let ids = nix::unistd::getresuid().map_err(errno)?;
        let [real, effective, saved] = [ids.real, ids.effective, ids.saved].map(|id| id.as_raw());
        Ok(Self { real, effective, saved })
    }

    fn groups() -> Result<Self, Errno> {
        let ids = nix::unistd::getresgid().map_err(errno)?;
        let [real, effective, saved] = [ids.real, ids.effective, ids.saved].map(|id| id.as_raw());
        Ok(Self { real, effective, saved })
    }

    /// What setuid(2) makes of them: who may, becomes another altogether.
    fn set(self, id: u32, may_be_anybody: bool) -> Self {
        if may_be_anybody {
            Self { real: id, effective: id, saved: id }
        } else {
            Self { effective: id, ..self }
        }
    }

    /// What setreuid(2) makes of them.
    fn set_two(self, real: u32, effective: u32) -> Self {
        let wanted = self.set_three(real, effective, UNCHANGED);
        let forgets = real != UNCHANGED || (effective != UNCHANGED && effective != self.real);
        if forgets { Self { saved: wanted.effective, ..wanted } } else { wanted }
    }

    /// What setresuid(2) makes of them.
    fn set_three(self, real: u32, effective: u32, saved: u32) -> Self {
        let or = |id, before| if id == UNCHANGED { before } else { id };
        Self {
            real: or(real, self.real),
            effective: or(effective, self.effective),
            saved: or(saved, self.saved),
        }
    }

    fn store(self, task: &Task, addrs: [u64; 3]) -> Answer {
        for (addr, id) in addrs.into_iter().zip([self.real, self.effective, self.saved]) {
            task.space.store(addr, &id.to_ne_bytes())?;
        }
        Ok(0)
    }
}

/// A change succeeds if it is none.
fn allow<T: PartialEq>(before: &T, after: &T) -> Answer {
    if before == after { Ok(0) } else { Err(Errno::PERM) }
}

fn capabilities() -> Result<CapabilitySets, Errno> {
    rustix::thread::capabilities(None)
}

fn may(capability: CapabilitySet) -> Result<bool, Errno> {
    Ok(capabilities()?.effective.contains(capability))
}

/// getuid(2)
pub(crate) fn getuid(_: &mut Task, _: Args) -> Answer {
    Ok(Ids::users()?.real.into())
}

/// geteuid(2)
pub(crate) fn geteuid(_: &mut Task, _: Args) -> Answer {
    Ok(Ids::users()?.effective.into())
}

/// getgid(2)
pub(crate) fn getgid(_: &mut Task, _: Args) -> Answer {
    Ok(Ids::groups()?.real.into())
}

/// getegid(2)
pub(crate) fn getegid(_: &mut Task, _: Args) -> Answer {
    Ok(Ids::groups()?.effective.into())
}

/// getresuid(2)
pub(crate) fn getresuid(task: &mut Task, [real, effective, saved, ..]: Args) -> Answer {
    Ids::users()?.store(task, [real, effective, saved])
}

/// getresgid(2)
pub(crate) fn getresgid(task: &mut Task, [real, effective, saved, ..]: Args) -> Answer {
    Ids::groups()?.store(task, [real, effective, saved])
}

/// setuid(2)
pub(crate) fn setuid(_: &mut Task, [id, ..]: Args) -> Answer {
    set_one(Ids::users()?, uint(id), CapabilitySet::SETUID)
}

/// setgid(2)
pub(crate) fn setgid(_: &mut Task, [id, ..]: Args) -> Answer {
    set_one(Ids::groups()?, uint(id), CapabilitySet::SETGID)
}

fn set_one(ids: Ids, id: u32, privilege: CapabilitySet) -> Answer {
    if id == UNCHANGED {
        return Err(Errno::INVAL);
    }
    // Without the privilege, the effective id can become the real or the saved one only.
    if !may(privilege)? && id != ids.real && id != ids.saved {
        return Err(Errno::PERM);
    }
    allow(&ids, &ids.set(id, may(privilege)?))
}

/// setreuid(2)
pub(crate) fn setreuid(_: &mut Task, [real, effective, ..]: Args) -> Answer {
    let ids = Ids::users()?;
    allow(&ids, &ids.set_two(uint(real), uint(effective)))
}

/// setregid(2)
pub(crate) fn setregid(_: &mut Task, [real, effective, ..]: Args) -> Answer {
    let ids = Ids::groups()?;
    allow(&ids, &ids.set_two(uint(real), uint(effective)))
}

/// setresuid(2)
pub(crate) fn setresuid(_: &mut Task, [real, effective, saved, ..]: Args) -> Answer {
    let ids = Ids::users()?;
    allow(&ids, &ids.set_three(uint(real), uint(effective), uint(saved)))
}

/// setresgid(2)
pub(crate) fn setresgid(_: &mut Task, [real, effective, saved, ..]: Args) -> Answer {
    let ids = Ids::groups()?;
    allow(&ids, &ids.set_three(uint(real), uint(effective), uint(saved)))
}

/// setfsuid(2), which returns the id from before whether it has changed it or not
pub(crate) fn setfsuid(task: &mut Task, args: Args) -> Answer {
    geteuid(task, args)
}

/// setfsgid(2): as [`setfsuid`]
pub(crate) fn setfsgid(task: &mut Task, args: Args) -> Answer {
    getegid(task, args)
}

/// getgroups(2)
pub(crate) fn getgroups(task: &mut Task, [count, list, ..]: Args) -> Answer {
    let groups = rustix::process::getgroups()?;
    let count = int(count);
    if count != 0 {
        if usize::try_from(count).map_err(|_| Errno::INVAL)? < groups.len() {
            return Err(Errno::INVAL);
        }
        let bytes: Vec<u8> = groups.iter().flat_map(|group| group.as_raw().to_ne_bytes()).collect();
        task.space.store(list, &bytes)?;
    }
    Ok(groups.len() as u64)
}

/// setgroups(2)
pub(crate) fn setgroups(task: &mut Task, [count, list, ..]: Args) -> Answer {
    if !may(CapabilitySet::SETGID)? {
        return Err(Errno::PERM);
    }
    let count = usize::try_from(int(count)).ok().filter(|&count| count <= GROUPS_MAX).ok_or(Errno::INVAL)?;
    let mut bytes = vec![0; count * size_of::<u32>()];
    task.space.fetch_into(list, &mut bytes)?;
    let mut wanted: Vec<_> = bytes.chunks_exact(size_of::<u32>()).map(|group| u32_at(group, 0)).collect();
    let mut groups: Vec<_> = rustix::process::getgroups()?.into_iter().map(|group| group.as_raw()).collect();
    wanted.sort_unstable();
    groups.sort_unstable();
    allow(&groups, &wanted)
}

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h)
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Two records of three sets of 32 capabilities.
const CAPABILITIES: usize = 24;

/// Reads the header of capget(2) and capset(2): `false` if it is of another version, which is put right.
fn check_header(task: &Task, header: u64) -> Result<bool, Errno> {
    let record: [u8; 8] = task.space.fetch(header)?;
    if u32_at(&record, 0) != CAPABILITY_VERSION {
        task.space.store(header, &CAPABILITY_VERSION.to_ne_bytes())?;
        return Ok(false);
    }
    let pid = u32_at(&record, 4).cast_signed();
    if pid == 0 || pid == task.identity.pid { Ok(true) } else { Err(Errno::PERM) }
}

/// The sets as a guest passes them.
fn capability_record(sets: &CapabilitySets) -> Record<CAPABILITIES> {
    let sets = [sets.effective, sets.permitted, sets.inheritable].map(|set| u64_halves(set.bits()));
    sets.into_iter().enumerate().fold(Record::new(), |record, (index, [low, high])| {
        record.put(index * 4, low).put(12 + index * 4, high)
    })
}

fn u64_halves(value: u64) -> [[u8; 4]; 2] {
    [uint(value).to_ne_bytes(), uint(value >> 32).to_ne_bytes()]
}

/// capget(2)
pub(crate) fn capget(task: &mut Task, [header, data, ..]: Args) -> Answer {
    if !check_header(task, header)? {
        return if data == 0 { Ok(0) } else { Err(Errno::INVAL) };
    }
    if data != 0 {
        task.space.store(data, capability_record(&capabilities()?).bytes())?;
    }
    Ok(0)
}

/// capset(2)
pub(crate) fn capset(task: &mut Task, [header, data, ..]: Args) -> Answer {
    if !check_header(task, header)? {
        return Err(Errno::INVAL);
    }
    let wanted: [u8; CAPABILITIES] = task.space.fetch(data)?;
    allow(capability_record(&capabilities()?).bytes(), &wanted)
}
