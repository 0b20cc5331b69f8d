//! `cargo xtask kernel`: a Linux kernel with process_vm_exec(2), from `kernel/` of this repository.

mod cache;
mod config;
mod console;
mod image;
mod initramfs;
mod machine;
mod overhead;
mod packages;
mod programs;
mod report;
mod results;
mod source;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;

use self::{
    cache::Cache,
    config::Config,
    image::Image,
    initramfs::Archive,
    machine::{Machine, Time},
    overhead::Comparison,
    programs::Selection,
    report::{Boot, Report},
    source::Source,
};

/// Build, boot and test a kernel that has process_vm_exec(2).
///
/// Sources, objects and kernels are kept in $PVX_KERNEL_CACHE, which is ~/.cache/process-vm-exec/kernel by default.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Chore {
    /// Build the kernel, unless the cache has it
    Build {
        /// What to build
        #[arg(long, value_enum, default_value_t = Config::Plain)]
        config: Config,
    },
    /// Boot the kernel in QEMU and run the tests
    Test(TestArgs),
    /// Boot the kernel with and without the patches, and compare the instructions that some calls take
    Overhead {
        /// Print the counts as JSON
        #[arg(long)]
        json: bool,
    },
    /// Boot the kernel in QEMU, with a shell on this terminal; leave it with `poweroff -f`, or Ctrl-A x
    Shell {
        /// Which kernel to boot
        #[arg(long, value_enum, default_value_t = Config::Plain)]
        config: Config,

        /// How many processors it has
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
        cpus: u8,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Which kernel to boot
    #[arg(long, value_enum, default_value_t = Configs::Plain)]
    config: Configs,

    /// With how many processors
    #[arg(long, value_enum, default_value_t = Cpus::All)]
    cpus: Cpus,

    /// Run this program or group only, such as `selftests`, `selftests/run` or `library` (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// How long stress and fuzzer take, in seconds each
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    storm: u32,

    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Configs {
    /// The kernel as one would use it
    Plain,
    /// With lockdep and other checks
    Debug,
    /// Both, one after the other
    All,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Cpus {
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
    All,
}

pub(crate) fn run(chore: &Chore) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let cache = Cache::open()?;
    match chore {
        Chore::Build { config } => {
            let image = image::build(root, &cache, *config, Source::Patched)?;
            println!("{}", image.path.display());
            Ok(ExitCode::SUCCESS)
        }
        Chore::Test(args) => test(root, &cache, args),
        Chore::Overhead { json } => overhead(root, &cache, *json),
        Chore::Shell { config, cpus } => shell(root, &cache, *config, *cpus),
    }
}

fn test(root: &Path, cache: &Cache, args: &TestArgs) -> Result<ExitCode> {
    let selection = Selection { only: args.only.clone(), storm_seconds: args.storm };
    packages::ensure(packages::TEST)?;
    let programs = programs::build(root, cache, &selection)?;
    let mut report = Report::default();
    for &config in args.config.list() {
        let image = image::build(root, cache, config, Source::Patched)?;
        for &cpus in args.cpus.list() {
            let plan = programs::plan(&programs, config);
            let run = format!("runs/{config}-{cpus}");
            let _lock = cache.lock(&run)?;
            let place = cache.path(&run);
            let archive = programs::archive(&programs, &plan)?;
            let machine = machine(image.clone(), &place, cpus, Time::Host, &archive)?;
            let finished = machine.test(&plan, &place)?;
            report.boots.push(Boot::new(cpus, &image, finished));
        }
    }
    report.print(args.json)?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn overhead(root: &Path, cache: &Cache, as_json: bool) -> Result<ExitCode> {
    packages::ensure(packages::TEST)?;
    let programs = programs::build(root, cache, &Selection::overhead())?;
    let plan = programs::plan(&programs, Config::Plain);
    let archive = programs::archive(&programs, &plan)?;
    let mut report = Report::default();
    for source in [Source::Unpatched, Source::Patched] {
        let image = image::build(root, cache, Config::Plain, source)?;
        let run = format!("runs/overhead-{}", image.name);
        let _lock = cache.lock(&run)?;
        let place = cache.path(&run);
        let finished =
            machine(image.clone(), &place, 1, Time::Instructions, &archive)?.test(&plan, &place)?;
        report.boots.push(Boot::new(1, &image, finished));
    }
    if !report.is_good() {
        report.print(as_json)?;
        return Ok(ExitCode::FAILURE);
    }
    let comparison = Comparison::new(report.boots[0].tests(), report.boots[1].tests())?;
    comparison.print(as_json)?;
    Ok(if comparison.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shell(root: &Path, cache: &Cache, config: Config, cpus: u8) -> Result<ExitCode> {
    packages::ensure(packages::TEST)?;
    let programs = programs::build(root, cache, &Selection::everything())?;
    let image = image::build(root, cache, config, Source::Patched)?;
    let run = format!("runs/shell-{config}-{cpus}");
    let _lock = cache.lock(&run)?;
    let plan = programs::plan(&programs, config);
    let archive = programs::archive(&programs, &plan)?;
    machine(image, &cache.path(&run), cpus, Time::Host, &archive)?.shell()?;
    Ok(ExitCode::SUCCESS)
}

fn machine(image: Image, place: &Path, cpus: u8, time: Time, archive: &Archive) -> Result<Machine> {
    let initramfs: PathBuf = place.join("initramfs.cpio");
    archive.write(&initramfs)?;
    Ok(Machine { image, initramfs, cpus, time })
}

impl Configs {
    fn list(self) -> &'static [Config] {
        match self {
            Self::Plain => &[Config::Plain],
            Self::Debug => &[Config::Debug],
            Self::All => &[Config::Plain, Config::Debug],
        }
    }
}

impl Cpus {
    fn list(self) -> &'static [u8] {
        match self {
            Self::One => &[1],
            Self::Two => &[2],
            Self::All => &[2, 1],
        }
    }
}
