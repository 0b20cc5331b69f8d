//! `pvx check`: what this machine offers, and which engine will be used.

use std::{fmt::Write as _, fs, path::Path, process::ExitCode};

use anyhow::Result;
use process_vm_exec::Engine;
use raw_cpuid::CpuId;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::{live, output};

/// Say what this machine offers, which engine will be used, and what the others lack.
///
/// Succeeds if any engine works here.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  pvx check             as text
  pvx check --json      for a program: .best is the engine that will be used;
                        docs/pvx.md explains the fields")]
pub(crate) struct CheckArgs {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// All answers; this very structure is the JSON.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    cpu: String,
    cpus: usize,
    /// The engine that will be used, if any works.
    best: Option<&'static str>,
    engines: Vec<EngineLine>,
    features: Vec<Feature>,
}

#[derive(Debug, Serialize)]
struct EngineLine {
    engine: &'static str,
    works: bool,
    /// What it lacks, and what to do about it.
    lacks: Option<String>,
}

/// One thing that the CPU or the kernel may have.
#[derive(Debug, Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
    /// What is needed for, or what was seen.
    detail: String,
    /// What to do where it is missing and matters.
    advice: Option<&'static str>,
}

/// Looks and reports.
pub(crate) fn check(args: &CheckArgs) -> Result<ExitCode> {
    let report = Report::here();
    output::report(&report, args.json, Report::text)?;
    Ok(if report.best.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Report {
    fn here() -> Self {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        let proc = proc_filesystem();
        let (best, engines) = engines();
        let mut features = cpu_features();
        features.extend(kernel_features(&release));
        if proc.present {
            features.extend(kernel_settings());
        }
        features.push(proc);
        features.push(native_call(&engines));
        Self {
            kernel: format!("{} {release}", uname.sysname().to_string_lossy()),
            cpu: CpuId::new()
                .get_processor_brand_string()
                .map_or_else(|| "unknown".to_owned(), |brand| brand.as_str().trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            best,
            engines,
            features,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}, {} CPUs, {}\n", self.cpu, self.cpus, self.kernel);
        text.push_str("\nEngines, the best first:\n");
        for line in &self.engines {
            let used = if Some(line.engine) == self.best { "works, will be used" } else { "works" };
            let _ = writeln!(text, "  {:<9} {}", line.engine, line.lacks.as_deref().unwrap_or(used));
        }
        text.push_str("\nWhat there is:\n");
        let width = self.features.iter().map(|feature| feature.name.len()).max().unwrap_or(0);
        for feature in &self.features {
            let present = if feature.present { "yes" } else { "no " };
            let _ = writeln!(text, "  {:<width$}  {present}  {}", feature.name, feature.detail);
            if let Some(advice) = feature.advice {
                let _ = writeln!(text, "  {:<width$}       -> {advice}", "");
            }
        }
        text
    }
}

fn engines() -> (Option<&'static str>, Vec<EngineLine>) {
    match live::require_proc().and_then(|()| Ok(Engine::detect()?)) {
        Ok(detection) => {
            let lines = detection.engines.into_iter().map(|(engine, lacks)| EngineLine {
                engine: engine.name(),
                works: lacks.is_none(),
                lacks: lacks.map(|lacks| lacks.to_string()),
            });
            (Some(detection.best.name()), lines.collect())
        }
        Err(error) => {
            let lines = Engine::ALL.into_iter().map(|engine| EngineLine {
                engine: engine.name(),
                works: false,
                lacks: Some(error.to_string()),
            });
            (None, lines.collect())
        }
    }
}

fn cpu_features() -> Vec<Feature> {
    let cpuid = CpuId::new();
    let extended = cpuid.get_extended_feature_info();
    let has = |test: fn(&raw_cpuid::ExtendedFeatures) -> bool| extended.as_ref().is_some_and(test);
    let basic = cpuid.get_feature_info();
    let xsave = basic.as_ref().is_some_and(|info| info.has_xsave() && info.has_oxsave());
    let avx = basic.as_ref().is_some_and(|info| info.has_avx());
    let xsave_len = process_vm_exec::xstate_size();
    vec![
        Feature::new("fsgsbase (CPU)", has(|e| e.has_fsgsbase()), "segment bases without a system call"),
        Feature::new("xsave", xsave, format!("the extended state of a context is {xsave_len} bytes")),
        Feature::new("avx", avx, "carried in a context"),
        Feature::new("avx2", has(|e| e.has_avx2()), "carried in a context"),
        Feature::new("avx512f", has(|e| e.has_avx512f()), "carried in a context"),
        Feature::new("bmi2", has(|e| e.has_bmi2()), "guests see it as it is"),
        Feature::new("rdpid", has(|e| e.has_rdpid()), "guests can see on which CPU they run"),
        Feature::new("pku", has(|e| e.has_ospke()), "memory protection keys, carried in a context"),
    ]
}

fn kernel_features(release: &str) -> Vec<Feature> {
    vec![kernel_fsgsbase(), syscall_user_dispatch(release)]
}

/// What /proc/sys says.
fn kernel_settings() -> Vec<Feature> {
    vec![seccomp_trap(), userfaultfd(), memfd_exec(), ptrace_scope()]
}

fn proc_filesystem() -> Feature {
    let present = live::require_proc().is_ok();
    Feature::new("/proc", present, "needed by every engine, and to look at processes")
        .or_advise("mount it: mount -t proc proc /proc")
}

/// `AT_HWCAP2` bit 1 (arch/x86/include/uapi/asm/hwcap2.h, `HWCAP2_FSGSBASE`).
fn kernel_fsgsbase() -> Feature {
    let (_, hwcap2) = rustix::param::linux_hwcap();
    Feature::new("fsgsbase (kernel)", hwcap2 & 2 != 0, "AT_HWCAP2: the kernel lets programs use it")
        .or_advise("use Linux 5.9 or newer, booted without `nofsgsbase`")
}

/// It came with Linux 5.11 and cannot be configured away on x86-64.
fn syscall_user_dispatch(release: &str) -> Feature {
    let new_enough = version(release) >= (5, 11);
    Feature::new("syscall user dispatch", new_enough, "system calls of guests become SIGSYS (Linux 5.11)")
        .or_advise("use Linux 5.11 or newer; without it seccomp does the same, more slowly")
}

fn seccomp_trap() -> Feature {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let present = actions.split_whitespace().any(|action| action == "trap");
    Feature::new("seccomp", present, "the filter under executors")
        .or_advise("use a kernel with CONFIG_SECCOMP_FILTER")
}

fn userfaultfd() -> Feature {
    let Some(unprivileged) = read("/proc/sys/vm/unprivileged_userfaultfd") else {
        return Feature::new("userfaultfd", false, "no such call in this kernel")
            .or_advise("use a kernel with CONFIG_USERFAULTFD to track written pages");
    };
    let capable = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE));
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let detail = format!("vm.unprivileged_userfaultfd={unprivileged}, CAP_SYS_PTRACE: {capable}");
    Feature::new("userfaultfd", capable || device || unprivileged == "1", detail)
        .or_advise("sysctl vm.unprivileged_userfaultfd=1, or grant access to /dev/userfaultfd")
}

fn memfd_exec() -> Feature {
    // 2 refuses executable memory files whatever the caller asks for (Documentation/admin-guide/sysctl/vm.rst).
    let mode = read("/proc/sys/vm/memfd_noexec").unwrap_or_else(|| "0".to_owned());
    Feature::new("executable memfd", mode != "2", format!("vm.memfd_noexec={mode}"))
        .or_advise("sysctl vm.memfd_noexec=1")
}

fn ptrace_scope() -> Feature {
    let Some(scope) = read("/proc/sys/kernel/yama/ptrace_scope") else {
        return Feature::new("ptrace of own children", true, "no Yama in this kernel");
    };
    // 3 forbids every attachment until the next boot; 2 asks for CAP_SYS_PTRACE, but not of a tracee's
    // own PTRACE_TRACEME below 3 (Documentation/admin-guide/LSM/Yama.rst).
    Feature::new("ptrace of own children", scope != "3", format!("kernel.yama.ptrace_scope={scope}"))
        .or_advise("boot with kernel.yama.ptrace_scope below 3")
}

fn native_call(engines: &[EngineLine]) -> Feature {
    let present = engines.iter().any(|line| line.engine == Engine::Native.name() && line.works);
    Feature::new("process_vm_exec(2)", present, "the kernel's own call; no released kernel has it")
        .or_advise("nothing is lost but the engine `native`; `cargo xtask kernel` builds a kernel with it")
}

impl Feature {
    fn new(name: &'static str, present: bool, detail: impl Into<String>) -> Self {
        Self { name, present, detail: detail.into(), advice: None }
    }

    /// What to do if it is missing.
    fn or_advise(self, advice: &'static str) -> Self {
        Self { advice: (!self.present).then_some(advice), ..self }
    }
}

/// The first line of a file below /proc/sys.
fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Major and minor number of a release such as `6.18.44-generic`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(version("5.9.1") < version("5.11.0-rc1"));
        assert_eq!(version("6.18.44-fc"), (6, 18));
        assert_eq!(version("odd"), (0, 0));
    }
}
