//! Programs of others, attached to while they work: what they say is what they say without.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use process_vm_exec::Sysno;

use crate::{
    common::{Execute as _, Killed, attached, has, scratch, skip, soon, turn},
    trace::{Trace, assert_no_trace_but, has_region, numbers},
};

/// Attaches, calls and detaches once.
fn visit(pid: i32) {
    let space = attached(pid);
    let executor = space.execute(Sysno::getpid, [0; 6]).expect("getpid");
    assert_ne!(executor, u64::try_from(pid).expect("a pid"));
    thread::sleep(Duration::from_millis(1));
    space.detach().expect("detaching");
}

/// Nothing is left; what descriptors and children such a program has is its own affair.
fn assert_left_alone(pid: i32) {
    assert_no_trace_but(pid, |trace| matches!(trace, Trace::Descriptor(_) | Trace::Child(..)));
}

/// Runs a program once alone and once visited until its end; it says the same.
fn says_the_same(command: impl Fn() -> Command) {
    let alone = command().stdin(Stdio::null()).output().expect("the program");
    if !alone.status.success() {
        return skip(&format!(
            "{}: {}",
            command().get_program().display(),
            String::from_utf8_lossy(&alone.stderr)
        ));
    }
    let mut child = command()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut output = BufReader::new(child.stdout.take().expect("its output"));
    let mut errors = child.stderr.take().expect("its errors");
    let mut child = Killed(child);
    let pid = child.pid();
    // Each of them says first that it works: before, it may still be another program.
    let mut text = String::new();
    output.read_line(&mut text).expect("its output");
    assert_eq!(text, "works\n");
    let rest = thread::spawn(move || std::io::read_to_string(output).expect("its output"));
    let mut visits = 0;
    loop {
        // It may end at any time; then, and only then, attaching fails.
        match process_vm_exec::LiveProcess::attach_pid(pid) {
            Ok(space) => {
                if !has_region(pid) {
                    // Its memory goes before its end is told.
                    soon("it has ended, as nothing of ours is there", || {
                        matches!(child.0.try_wait(), Ok(Some(_)))
                    });
                }
                let result = space.execute(Sysno::getpid, [0; 6]);
                thread::sleep(Duration::from_millis(1));
                let detached = space.detach();
                if result.is_ok() && detached.is_ok() {
                    visits += 1;
                } else {
                    soon("it has ended", || matches!(child.0.try_wait(), Ok(Some(_))));
                }
            }
            Err(error) => {
                soon(&format!("it has ended, as {error}"), || matches!(child.0.try_wait(), Ok(Some(_))))
            }
        }
        if let Some(status) = child.0.try_wait().expect("its status") {
            let errors = std::io::read_to_string(&mut errors).unwrap_or_default();
            assert!(status.success(), "{status} after {visits} visits: {errors}");
            break;
        }
        thread::sleep(Duration::from_millis(3));
    }
    text += &rest.join().expect("its output");
    assert!(visits > 5, "only {visits} visits: too few to show anything");
    assert_eq!(text, String::from_utf8_lossy(&alone.stdout), "after {visits} visits");
    eprintln!("{}: {visits} visits", command().get_program().display());
}

fn is_there(command: &str) -> bool {
    let found = has(command);
    if !found {
        skip(&format!("no {command}"));
    }
    found
}

const PYTHON: &str = r#"
import hashlib, subprocess, threading, time
print("works", flush=True)
sums = {}
def work(number):
    digest = hashlib.sha256()
    for turn in range(150):
        digest.update(str(sum(range(turn * number))).encode())
        time.sleep(0.005)
    sums[number] = digest.hexdigest()
threads = [threading.Thread(target=work, args=(n,)) for n in (1, 20, 300)]
for thread in threads: thread.start()
for _ in range(10):
    assert subprocess.run(["echo", "child"], capture_output=True).stdout == b"child\n"
for thread in threads: thread.join()
print(sorted(sums.items()))
"#;

#[test]
fn python() {
    if !is_there("python3") {
        return;
    }
    let _turn = turn();
    says_the_same(|| {
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON]);
        command
    });
}

const GO: &str = r#"package main

import (
	"crypto/sha256"
	"fmt"
	"time"
)

func main() {
	fmt.Println("works")
	results := make(chan string, 8)
	for n := 0; n < 8; n++ {
		go func(n int) {
			sum := sha256.Sum256([]byte{byte(n)})
			for turn := 0; turn < 100; turn++ {
				for i := 0; i < 2000; i++ {
					sum = sha256.Sum256(sum[:])
				}
				time.Sleep(5 * time.Millisecond)
			}
			results <- fmt.Sprintf("%d %x", n, sum)
		}(n)
	}
	lines := map[string]bool{}
	for n := 0; n < 8; n++ {
		lines[<-results] = true
	}
	fmt.Println(lines)
}
"#;

#[test]
fn go() {
    if !is_there("go") {
        return;
    }
    let source = scratch().join("program.go");
    let program = scratch().join("go-program");
    fs::write(&source, GO).expect("the source is written");
    let built =
        Command::new("go").args(["build", "-o"]).args([&program, &source]).current_dir(scratch()).output();
    if !built.as_ref().is_ok_and(|built| built.status.success()) {
        return skip(&format!("go build: {built:?}"));
    }
    let _turn = turn();
    says_the_same(|| Command::new(&program));
}

const JAVA: &str = r#"
public class Program {
    public static void main(String[] arguments) throws Exception {
        System.out.println("works");
        long[] sums = new long[4];
        Thread[] threads = new Thread[4];
        for (int n = 0; n < 4; n++) {
            final int number = n;
            threads[n] = new Thread(() -> {
                for (int turn = 0; turn < 100; turn++) {
                    StringBuilder text = new StringBuilder();
                    for (int i = 0; i < 2000; i++) text.append(i * number);
                    sums[number] = sums[number] * 31 + text.toString().hashCode();
                    try { Thread.sleep(5); } catch (InterruptedException e) { System.out.println("interrupted"); }
                }
            });
            threads[n].start();
        }
        for (Thread thread : threads) thread.join();
        for (long sum : sums) System.out.println(sum);
    }
}
"#;

#[test]
fn java() {
    if !is_there("java") || !is_there("javac") {
        return;
    }
    let source = scratch().join("Program.java");
    fs::write(&source, JAVA).expect("the source is written");
    let built = Command::new("javac").arg("-d").args([scratch(), &source]).output();
    if !built.as_ref().is_ok_and(|built| built.status.success()) {
        return skip(&format!("javac: {built:?}"));
    }
    let _turn = turn();
    says_the_same(|| {
        let mut command = Command::new("java");
        command.arg("-cp").arg(scratch()).arg("Program");
        command
    });
}

#[test]
fn sqlite_with_its_input_open() {
    if !is_there("sqlite3") {
        return;
    }
    let _turn = turn();
    let database = scratch().join("database");
    let mut shell = Command::new("sqlite3")
        .arg(&database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sqlite3");
    let mut input = shell.stdin.take().expect("its input");
    let mut output = BufReader::new(shell.stdout.take().expect("its output")).lines();
    let mut shell = Killed(shell);
    writeln!(input, "create table t(n integer);").expect("its input");
    for n in 0..200 {
        // Sometimes it works when it is visited, and sometimes it waits for the next line.
        writeln!(input, "insert into t values({n}); select count(*), sum(n) from t;").expect("its input");
        if n % 2 == 0 {
            visit(shell.pid());
        }
        let line = output.next().expect("a line").expect("its output");
        assert_eq!(line, format!("{}|{}", n + 1, n * (n + 1) / 2));
        if n % 2 == 1 {
            visit(shell.pid());
        }
    }
    assert_left_alone(shell.pid());
    // The end of its input is the end of it: nobody else has the pipe.
    drop(input);
    soon("sqlite3 has ended", || matches!(shell.0.try_wait(), Ok(Some(status)) if status.success()));
}

fn redis_cli(socket: &Path, args: &[&str]) -> String {
    let output = Command::new("redis-cli").arg("-s").arg(socket).args(args).output().expect("redis-cli");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn redis_under_load() {
    if !is_there("redis-server") || !is_there("redis-benchmark") || !is_there("redis-cli") {
        return;
    }
    let _turn = turn();
    let socket = scratch().join("redis");
    let server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(&socket)
        .current_dir(scratch())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server");
    let mut server = Killed(server);
    let pid = server.pid();
    soon("redis-server answers", || redis_cli(&socket, &["ping"]) == "PONG");
    assert_eq!(redis_cli(&socket, &["set", "counter", "0"]), "OK");
    let benchmark = Command::new("redis-benchmark")
        .arg("-s")
        .arg(&socket)
        .args(["-n", "100000", "-c", "20", "-q", "incr", "counter"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("redis-benchmark");
    let mut benchmark = Killed(benchmark);
    let (mut visits, mut threads) = (0, 0);
    let status = loop {
        visit(pid);
        visits += 1;
        threads = threads.max(numbers(&format!("/proc/{pid}/task")).len());
        if let Some(status) = benchmark.0.try_wait().expect("its status") {
            break status;
        }
        thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success() && visits > 10, "{status} after {visits} visits");
    assert_eq!(redis_cli(&socket, &["get", "counter"]), "100000", "after {visits} visits");
    // A saving child is forked and waited for.
    assert_eq!(redis_cli(&socket, &["bgsave"]), "Background saving started");
    soon("it is saved", || {
        visit(pid);
        let info = redis_cli(&socket, &["info", "persistence"]);
        info.contains("rdb_bgsave_in_progress:0") && info.contains("rdb_last_bgsave_status:ok")
    });
    assert_left_alone(pid);
    redis_cli(&socket, &["shutdown", "nosave"]);
    soon("redis-server has ended", || matches!(server.0.try_wait(), Ok(Some(status)) if status.success()));
    eprintln!("redis-server with {threads} threads: {visits} visits");
}
