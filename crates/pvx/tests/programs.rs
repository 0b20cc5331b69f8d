//! Real programs under `pvx run`, with each engine: the output and the exit status are those of a native run.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use support::{PVX, Place, Seen, engines, which};

/// The numbers from 1 to `count` in an order that is no order.
fn shuffled(count: u64) -> String {
    // 1,000,003 is prime, so the multiples of anything else run through all its residues.
    (1..=count).map(|number| format!("{}\n", number * 7919 % 1_000_003)).collect()
}

#[test]
fn applets_of_a_static_program_run_as_they_do_natively() {
    let place = Place::new();
    place.file("numbers", shuffled(2000));
    place.file("text", "one two\nthree four\nfive\n");
    for words in [
        "echo hello world",
        "cat text",
        "ls -la /etc",
        "wc numbers",
        "sort -n numbers",
        "uniq text",
        "head -n 3 numbers",
        "tail -n 3 numbers",
        "md5sum numbers",
        "sha1sum numbers",
        "cut -d' ' -f1 text",
        "tr a-z A-Z",
        "grep -n o text",
        "sed s/o/0/g text",
        "awk {n+=$1}END{print(n)} numbers",
        "od -c text",
        "rev text",
        "seq 1 5",
        "stat -c %s numbers",
        "basename /a/b/c",
        "dirname /a/b/c",
        "readlink -f .",
        "find . -type f",
        "test -e nothing",
        "false",
        "printf %05d\\n 42",
        "expr 6 * 7",
        "date -u -r text +%Y",
        "uname -m",
        "id -u",
        "pwd",
        "env -i A=B env -u A",
        "hexdump text",
        "cksum numbers",
        "cmp text numbers",
        "diff text numbers",
        "gzip -c text",
        "base64 text",
        "factor 1234567",
        "usleep 1000",
    ] {
        let words: Vec<_> = std::iter::once("busybox").chain(words.split(' ')).collect();
        place.same(&words);
    }
}

#[test]
fn files_made_moved_and_removed_by_applets_are_the_hosts() {
    for (engine, place) in engines().into_iter().map(|engine| (engine, Place::new())) {
        let run = |words: &str| {
            let words: Vec<_> = std::iter::once("busybox").chain(words.split(' ')).collect();
            place.guest(&["--engine", engine.name()], &words)
        };
        if which("busybox").is_none() {
            println!("SKIP: busybox is not installed");
            return;
        }
        place.file("a", "contents");
        for words in
            ["mkdir -p d/e", "cp a d/b", "mv a d/e/c", "ln -s e/c d/link", "chmod 600 d/b", "touch d/new"]
        {
            assert_eq!(
                run(words),
                Seen { status: 0, stdout: String::new(), stderr: String::new() },
                "{words}"
            );
        }
        assert_eq!(fs::read(place.path("d/link")).unwrap(), b"contents");
        assert_eq!(fs::metadata(place.path("d/b")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(place.path("d/new").exists() && !place.path("a").exists());
        assert_eq!(run("rm -r d").status, 0);
        assert!(!place.path("d").exists());
    }
}

#[test]
fn a_shell_computes_and_its_exit_status_is_passed_on() {
    let place = Place::new();
    place.same(&[
        "busybox",
        "sh",
        "-c",
        "x=0; while [ $x -lt 100 ]; do x=$((x+1)); done; echo $x >out; read y <out; cd /; pwd; exit $((y-93))",
    ]);
    place.same(&["bash", "-c", "trap 'echo caught' USR1; kill -USR1 $$; echo after; exit 3"]);
}

#[test]
fn death_by_a_signal_is_passed_on_as_128_and_its_number() {
    Place::new().same(&["busybox", "sh", "-c", "kill -TERM $$; echo not reached"]);
    Place::new().same(&["bash", "-c", "kill -9 $$"]);
}

#[test]
fn a_listing_of_a_tree_is_the_same() {
    Place::new().same(&["ls", "-laR", "/etc"]);
    Place::new().same(&["find", "/etc", "-newer", "/etc/passwd"]);
}

#[test]
fn a_large_file_has_the_same_checksum_and_the_same_order() {
    let place = Place::new();
    let bytes: Vec<u8> =
        (0u32..8 << 20).flat_map(|number| number.wrapping_mul(2_654_435_761).to_ne_bytes()).collect();
    place.file("bytes", bytes);
    place.same(&["sha256sum", "bytes"]);
    place.file("numbers", shuffled(300_000));
    place.same(&["sort", "--parallel=1", "-n", "numbers"]);
    place.same(&[
        "awk",
        "{n += $1; c[$1 % 10]++} END {print n; for (k in c) print k, c[k] | \"cat\" }",
        "/dev/null",
    ]);
    place.same(&["awk", "{n += $1; c[$1 % 10]++} END {print n, c[3]}", "numbers"]);
}

#[test]
fn python_imports_and_computes() {
    let place = Place::new();
    let find = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let Ok(found) = find else {
        println!("SKIP: python3 is not installed");
        return;
    };
    let python = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    place.same(&[
        &python,
        "-c",
        "import json, os, re, math, hashlib, collections, tempfile, time, signal\n\
         time.sleep(0.01)\n\
         print(json.dumps({'factorial': math.factorial(60), 'root': math.sqrt(2)}))\n\
         print(hashlib.sha256(b'x' * 100000).hexdigest())\n\
         print(sorted(os.listdir('/usr'))[:3], os.path.realpath('/proc/self/exe') != '')\n\
         with tempfile.NamedTemporaryFile() as f: f.write(b'abc'); f.flush(); print(os.stat(f.name).st_size)\n\
         signal.signal(signal.SIGALRM, lambda *a: print('alarm'))\n\
         signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()\n\
         raise SystemExit(5)",
    ]);
}

#[test]
fn perl_runs() {
    Place::new().same(&[
        "perl",
        "-e",
        "use List::Util qw(sum); my %h; $h{$_ % 7} += $_ for 1..10000;\n\
         print join(',', map {qq($_=$h{$_})} sort keys %h), qq(\\n), sum(1..100), qq(\\n); exit 7",
    ]);
}

#[test]
fn a_database_is_built_in_a_file() {
    let place = Place::new();
    let remove = || {
        let _ = fs::remove_file(place.path("db"));
    };
    place.same_after(
        remove,
        &[
            "sqlite3",
            "db",
            "create table t(a integer primary key, b text); begin; \
             with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000) \
             insert into t select i, hex(i) from n; commit; create index x on t(b); \
             select count(*), sum(a), max(b) from t; pragma integrity_check;",
        ],
    );
}

#[test]
fn git_shows_a_history() {
    let place = Place::new();
    if which("git").is_none() {
        println!("SKIP: git is not installed");
        return;
    }
    let git = |words: &[&str]| {
        let identity = ["git", "-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"];
        assert_eq!(place.native(&[&identity[..], words].concat()).status, 0, "{words:?}");
    };
    git(&["init", "-q", "."]);
    for number in 1..5 {
        place.file(&format!("f{number}"), shuffled(number * 100));
        git(&["add", "."]);
        git(&["commit", "-qm", &format!("change {number}")]);
    }
    place.same(&["git", "--no-pager", "log", "--stat"]);
    place.same(&["git", "--no-pager", "diff", "HEAD~2", "HEAD"]);
    place.same(&["git", "status", "--short"]);
}

#[test]
fn scripts_run_with_the_interpreter_they_name() {
    let place = Place::new();
    place.executable("script", "#!/bin/bash -u\necho \"$0 $# $1\"; exit 4\n");
    place.same(&["./script", "a b"]);
    place.executable("indirect", "#!./script\n");
    place.same(&["./indirect", "c"]);
}

#[test]
fn a_program_without_arguments_of_its_own_may_have_options_that_look_like_ours() {
    Place::new().same(&["echo", "--engine", "nothing", "--", "-x"]);
}

/// Compiles a program from `guests` and runs it natively and with each engine.
fn compiled(name: &str, compiler: &[&str]) {
    let place = Place::new();
    if !place.compile(name, compiler) {
        return;
    }
    let remove = || {
        let _ = fs::remove_dir_all(place.path("d"));
    };
    place.same_after(remove, &[&format!("./{name}")]);
}

#[test]
fn signals_are_what_they_are_natively() {
    compiled("signals", &["gcc"]);
}

#[test]
fn signals_are_what_they_are_natively_for_a_static_musl_program() {
    compiled("signals", &["musl-gcc", "-static"]);
}

#[test]
fn files_and_descriptors_are_what_they_are_natively() {
    compiled("files", &["gcc"]);
}

#[test]
fn files_and_descriptors_are_what_they_are_natively_for_a_static_musl_program() {
    compiled("files", &["musl-gcc", "-static"]);
}

#[test]
fn a_static_pie_is_loaded_and_relocates_itself() {
    compiled("files", &["gcc", "-static-pie"]);
}

#[test]
fn go_programs_need_threads() {
    println!("SKIP: Go starts threads before main (clone), and there is one task as yet");
}

#[test]
fn system_calls_of_32_bit_programs_fail_with_enosys() {
    let place = Place::new();
    if which("gcc").is_none() {
        println!("SKIP: gcc is not installed");
        return;
    }
    let source = "int main(void) { int r; __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(20) : \"memory\"); \
                  return r == -38; }";
    place.file("int80.c", source);
    assert_eq!(place.native(&["gcc", "-o", "int80", "int80.c"]).status, 0);
    for engine in engines() {
        let seen = place.guest(&["--engine", engine.name()], &["./int80"]);
        assert_eq!(seen.status, 1, "{engine}: {seen:?}");
        assert!(seen.stderr.contains("32-bit calls (int 0x80)"), "{engine}: {seen:?}");
    }
}

#[test]
fn a_system_call_that_is_missing_is_named_once_at_the_end() {
    let place = Place::new();
    for engine in engines() {
        let seen = place.guest(&["--engine", engine.name()], &["sh", "-c", "(exit 1); echo not forked"]);
        let lines: Vec<_> =
            seen.stderr.lines().filter(|line| line.contains("not implemented (they")).collect();
        assert_eq!(lines.len(), 1, "{engine}: {seen:?}");
        assert!(lines[0].contains("clone") || lines[0].contains("fork"), "{engine}: {seen:?}");
    }
}

/// In a pid namespace of its own, whose sysctl forbids to execute memory files.
#[test]
fn a_machine_that_lets_no_executor_start_says_so_and_what_to_do() {
    const FORBID: &str = "sysctl -qw vm.memfd_noexec=2 || exit 77; exec timeout 60 \"$0\" run /bin/true";
    let namespaces = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    let output = Command::new("unshare").args(namespaces).args(["sh", "-c", FORBID, PVX]).output();
    let seen = match output.map(Seen::of) {
        Ok(seen) if seen.status != 77 && !seen.stderr.contains("unshare") => seen,
        other => return println!("SKIP: vm.memfd_noexec cannot be set in a namespace here: {other:?}"),
    };
    assert_ne!(seen.status, 0);
    assert_ne!(seen.status, 124, "it waits for ever");
    assert!(seen.stderr.contains("vm.memfd_noexec"), "{seen:?}");
}

#[test]
fn bad_programs_are_refused_with_what_why_and_what_to_do() {
    let place = Place::new();
    let real = fs::read("/bin/true").expect("every machine has it");
    let patched = |at: usize, byte: u8| {
        let mut bytes = real.clone();
        bytes[at] = byte;
        bytes
    };
    place.file("plain", "text");
    place.executable("text", "text");
    place.executable("empty", "");
    place.executable("cut", &real[..1000]);
    place.executable("half", &real[..real.len() / 2]);
    place.executable("arm", patched(18, 183));
    place.executable("x86", patched(4, 1));
    place.executable("object", patched(16, 1));
    place.executable("orphan", "#!/no/such/interpreter\n");
    place.executable("nothing", "#!\n");
    place.executable("loop", "#!./loop\n");
    std::os::unix::fs::symlink("circle", place.path("circle")).expect("a link");
    for (program, status, why) in [
        ("/nope", 127, "pvx: /nope: No such file or directory"),
        ("no-such-program-anywhere", 127, "pvx: no-such-program-anywhere: No such file or directory"),
        ("/etc", 126, "pvx: /etc: not a regular file"),
        ("/dev/null", 126, "pvx: /dev/null: not a regular file"),
        ("./plain", 126, "not executable: Permission denied"),
        ("./text", 126, "it is no ELF file"),
        ("./empty", 126, "it is no ELF file"),
        ("./cut", 126, "cut short"),
        ("./half", 126, "cut short"),
        ("./arm", 126, "it is for 64-bit ARM (aarch64)"),
        ("./x86", 126, "it is for 32-bit x86"),
        ("./object", 126, "ELF type 1 is no program"),
        ("./orphan", 126, "its interpreter: /no/such/interpreter: No such file or directory"),
        ("./nothing", 126, "names no interpreter"),
        ("./loop", 126, "too many `#!` scripts"),
    ] {
        let seen = place.guest(&[], &[program]);
        assert_eq!((seen.status, seen.stdout.as_str()), (status, ""), "{program}: {seen:?}");
        assert!(seen.stderr.contains(why), "{program}: {seen:?}");
        assert_eq!(seen.stderr.lines().count(), 1, "{program}: {seen:?}");
        assert!(seen.stderr.contains("; "), "{program} gets no advice: {seen:?}");
    }
    for (program, advice) in [
        ("./cut", "the file is damaged"),
        ("./circle", "symbolic links lead in a circle"),
        ("./arm", "build it for x86-64"),
        ("./text", "through its interpreter"),
        ("./object", "link it into a program"),
    ] {
        let seen = place.guest(&[], &[program]);
        assert_eq!(seen.status, 126, "{program}: {seen:?}");
        assert!(seen.stderr.contains(advice), "{program}: {seen:?}");
    }
}
