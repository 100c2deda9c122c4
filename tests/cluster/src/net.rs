//! A network of machines on this one: a network namespace each, on one bridge, where this process stands too.
//!
//! Invariants: whatever was made is removed when the network is dropped, and what a killed run left behind is
//! removed by the next one; this process reaches every machine whose link is up, whatever else is cut. One
//! way from a machine to another is cut by a neighbour entry that leads nowhere: packets vanish as they do
//! on a broken path, nobody is told, and no packet filter has to be installed. Needs root and iproute2.

use crate::{Outcome, ensure, failure};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// All names begin with it, and with the pid of the process that made them.
const PREFIX: &str = "tsr";
/// No interface has it, so what is sent to it is lost.
const NOWHERE: &str = "02:74:ff:ff:ff:ff";
/// Where network namespaces have their names.
const NAMESPACES: &str = "/run/netns";

/// Machines, and this process beside them.
pub struct Net {
    pid: u32,
    /// Second part of all addresses' last 16 bits: networks of several runs differ in it.
    block: u8,
    cut: BTreeSet<(usize, usize)>,
    down: BTreeSet<usize>,
}

impl Net {
    /// So many machines that all reach each other.
    ///
    /// # Errors
    /// Without root or `ip`, or when the kernel refuses.
    pub fn new(machines: usize) -> Outcome<Self> {
        ensure(nix::unistd::geteuid().is_root(), || {
            "network namespaces need root: run this as root".to_owned()
        })?;
        sweep()?;
        let pid = std::process::id();
        let block = u8::try_from(pid % 250).unwrap_or(0) + 1;
        let net = Self { pid, block, cut: BTreeSet::new(), down: BTreeSet::new() };
        let bridge = net.bridge();
        let mut here = vec![
            format!("link add {bridge} type bridge"),
            format!("addr add 198.18.{block}.254/24 dev {bridge}"),
            format!("link set {bridge} up"),
        ];
        for machine in 0..machines {
            let (ns, link) = (net.namespace(machine), net.link(machine));
            here.extend([
                format!("netns add {ns}"),
                format!("link add {link} type veth peer name eth0 netns {ns}"),
                format!("link set {link} master {bridge}"),
                format!("link set {link} up"),
            ]);
        }
        ip(&[], &here)?;
        for machine in 0..machines {
            let mut inside = vec![
                "link set lo up".to_owned(),
                format!("link set eth0 address {}", net.mac(machine)),
                format!("addr add {}/24 dev eth0", net.address(machine)),
                "link set eth0 up".to_owned(),
            ];
            inside.extend((0..machines).filter(|to| *to != machine).map(|to| net.way(to, &net.mac(to))));
            ip(&["-n", &net.namespace(machine)], &inside)?;
        }
        Ok(net)
    }

    fn bridge(&self) -> String {
        format!("{PREFIX}{}b", self.pid)
    }

    fn namespace(&self, machine: usize) -> String {
        format!("{PREFIX}{}n{machine}", self.pid)
    }

    fn link(&self, machine: usize) -> String {
        format!("{PREFIX}{}v{machine}", self.pid)
    }

    fn mac(&self, machine: usize) -> String {
        format!("02:74:00:00:00:{:02x}", machine + 1)
    }

    /// A command that sends what goes to a machine to this hardware address.
    fn way(&self, to: usize, mac: &str) -> String {
        format!("neigh replace {} lladdr {mac} dev eth0 nud permanent", self.address(to))
    }

    /// The address of a machine.
    #[must_use]
    pub fn address(&self, machine: usize) -> String {
        format!("198.18.{}.{}", self.block, machine + 1)
    }

    /// A command that runs a program on a machine, as a child of this process.
    #[must_use]
    pub fn command(&self, machine: usize, program: &Path) -> Command {
        // Not `ip netns exec`, which hides control groups behind a new /sys.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMESPACES}/{}", self.namespace(machine)));
        command.arg("--").arg(program);
        command
    }

    /// Whatever one machine sends to the other is lost from now on, or arrives again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_way(&mut self, from: usize, to: usize, open: bool) -> Outcome {
        let mac = if open { self.mac(to) } else { NOWHERE.to_owned() };
        ip(&["-n", &self.namespace(from)], &[self.way(to, &mac)])?;
        match open {
            true => self.cut.remove(&(from, to)),
            false => self.cut.insert((from, to)),
        };
        Ok(())
    }

    /// A machine's cable is pulled out, or put in.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_link(&mut self, machine: usize, up: bool) -> Outcome {
        let state = if up { "up" } else { "down" };
        ip(&[], &[format!("link set {} {state}", self.link(machine))])?;
        match up {
            true => self.down.remove(&machine),
            false => self.down.insert(machine),
        };
        Ok(())
    }

    /// Bytes that have arrived at a machine.
    #[must_use]
    pub fn received(&self, machine: usize) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/tx_bytes", self.link(machine));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// What a machine sends leaves at this rate from now on, in Mbit/s, or as fast as it can.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_rate(&self, machine: usize, mbit: Option<u32>) -> Outcome {
        let qdisc = match mbit {
            Some(mbit) => format!("qdisc replace dev eth0 root tbf rate {mbit}mbit burst 64kb latency 400ms"),
            None => "qdisc del dev eth0 root".to_owned(),
        };
        batch("tc", &["-n", &self.namespace(machine)], &[qdisc])
    }

    /// All that was cut is whole again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&mut self) -> Outcome {
        for (from, to) in self.cut.clone() {
            self.set_way(from, to, true)?;
        }
        for machine in self.down.clone() {
            self.set_link(machine, true)?;
        }
        Ok(())
    }

    /// What of this network is still there.
    #[must_use]
    pub fn left_over(pid: u32) -> Vec<String> {
        let ours = |name: &String| owner(name) == Some(pid);
        names().into_iter().filter(ours).collect()
    }

    /// The process that made it, for [`Net::left_over`].
    #[must_use]
    pub fn owner(&self) -> u32 {
        self.pid
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Err(error) = remove(&|pid| pid == self.pid) {
            eprintln!("removing the network: {error}");
        }
    }
}

/// Removes what runs left behind that were killed.
fn sweep() -> Outcome {
    let own = std::process::id();
    remove(&|pid| pid == own || !Path::new(&format!("/proc/{pid}")).exists())
}

/// Whose name this is, if it is one of ours.
fn owner(name: &str) -> Option<u32> {
    let digits: String = name.strip_prefix(PREFIX)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Interfaces and namespaces of this machine.
fn names() -> Vec<String> {
    let dirs = ["/sys/class/net", NAMESPACES];
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove(whose: &dyn Fn(u32) -> bool) -> Outcome {
    let ours: Vec<String> = names().into_iter().filter(|name| owner(name).is_some_and(whose)).collect();
    let commands: Vec<String> = ours
        .iter()
        .map(|name| match Path::new(NAMESPACES).join(name).exists() {
            true => format!("netns del {name}"),
            false => format!("link del {name}"),
        })
        .collect();
    // A pair of interfaces goes with either of its ends.
    if commands.is_empty() { Ok(()) } else { ip(&["-force"], &commands).or(Ok(())) }
}

fn ip(flags: &[&str], commands: &[String]) -> Outcome {
    batch("ip", flags, commands)
}

/// Runs commands of `ip` or `tc`.
fn batch(program: &str, flags: &[&str], commands: &[String]) -> Outcome {
    let mut child = Command::new(program)
        .args(flags)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failure(format!("`{program}` (package iproute2) cannot be run: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all((commands.join("\n") + "\n").as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure(output.status.success(), || {
        format!("{program} {} {commands:?}: {}", flags.join(" "), String::from_utf8_lossy(&output.stderr))
    })
}
