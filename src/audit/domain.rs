//! What Landlock keeps from an app ([`crate::confine::landlock`]), each beside a control: the same by a process in the same place,
//! with the same sets, that is not in the app's domain. What is refused to both proves nothing about Landlock, and what
//! is granted to both proves that it is not there.
//!
//! The rules and the mounts are proved elsewhere, and by processes outside of the domain where Landlock would answer
//! first ([`super::network`]): neither layer hides that the other one is broken.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::Outcome;
use super::agent::{Agent, Answer, Ask, Landing, SOMETHING_ELSE, Shot};
use super::target::Findings;
use crate::confine::landlock::{App, Support};
use crate::plan::{AppPlan, Plan};

/// What one attempt came to: granted, or an errno.
type Tried = Option<i32>;

fn name(errno: i32) -> String {
    format!("{:?}", nix::Error::from_raw(errno))
}

/// Both processes of one app.
pub struct Pair<'a> {
    /// In the domain: the prober.
    pub inside: &'a Result<Agent, String>,
    /// In the same namespaces, and not in it.
    pub beside: &'a Result<Agent, String>,
}

impl Pair<'_> {
    fn agents(&self) -> Result<(&Agent, &Agent), String> {
        let inside = self.inside.as_ref().map_err(Clone::clone)?;
        let beside = self.beside.as_ref().map_err(Clone::clone)?;
        Ok((inside, beside))
    }

    /// The same asked of both: what is refused to the one, with `refusal`, must not be refused so to the other.
    fn compare(
        &self,
        refusal: i32,
        tries: impl Fn(&Agent) -> Result<Vec<(String, Tried)>, String>,
    ) -> Result<Outcome, String> {
        let (inside, beside) = self.agents()?;
        let found = tries(inside)?;
        let wrong = found.iter().find(|(_, tried)| *tried != Some(refusal));
        if let Some((what, tried)) = wrong {
            return Ok(Outcome::fail(format!(
                "{what}: {}",
                tried.map_or_else(|| "granted".to_owned(), name)
            )));
        }
        let controls = tries(beside)?;
        if let Some((what, _)) = controls.iter().find(|(_, tried)| *tried == Some(refusal)) {
            return Ok(Outcome::unknown(format!(
                "{what}: {} without Landlock too",
                name(refusal)
            )));
        }
        let what: Vec<&str> = found.iter().map(|(what, _)| what.as_str()).collect();
        Ok(Outcome::pass(format!(
            "{}: {}",
            what.join(", "),
            name(refusal)
        )))
    }
}

fn tried(agent: &Agent, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<Vec<(String, Tried)>, String> {
    match agent.ask_with(ask, fds)? {
        Answer::Tried(tried) => Ok(tried),
        _ => Err(SOMETHING_ELSE.to_owned()),
    }
}

/// Every probe of Landlock for one app.
pub fn probe(plan: &Plan, app: &AppPlan, pair: &Pair<'_>, findings: &mut Findings) {
    let support = Support::of_this_kernel();
    let own = App::of(app);
    let mut add = |id: &str, has: bool, outcome: &dyn Fn() -> Result<Outcome, String>| {
        let outcome = if has {
            outcome().unwrap_or_else(Outcome::unknown)
        } else {
            Outcome::not_applicable("this kernel's Landlock does not have it")
        };
        findings.add(id, app.name.as_str(), outcome);
    };
    add("landlock-connect", support.tcp, &|| match &own.connect {
        Some(ports) => connect(plan, unlisted(ports), pair),
        None => Ok(Outcome::not_applicable(
            "it has egress: the rules say where to, and log what they refuse",
        )),
    });
    add("landlock-bind", support.tcp, &|| {
        let port = unlisted(&own.bind);
        pair.compare(libc::EACCES, |agent| tried(agent, &Ask::Bind(port), &[]))
    });
    add("landlock-files", support.files, &|| {
        let bait = Bait::lay()?;
        pair.compare(libc::EACCES, |agent| {
            tried(agent, &Ask::OpenIn, &[bait.directory.as_fd()])
        })
    });
    add("landlock-abstract", support.scopes, &|| {
        let (_, beside) = pair.agents()?;
        let name = format!("lrpns-audit-beside-{}", std::process::id());
        beside.ask(&Ask::Listen(name.clone()))?;
        let ask = Ask::ConnectAbstract(name);
        pair.compare(libc::EPERM, |agent| tried(agent, &ask, &[]))
    });
    add("landlock-signal", support.scopes, &|| {
        let (_, beside) = pair.agents()?;
        let Answer::Pid(pid) = beside.ask(&Ask::Whoami)? else {
            return Err(SOMETHING_ELSE.to_owned());
        };
        pair.compare(libc::EPERM, |agent| tried(agent, &Ask::Signal(pid), &[]))
    });
}

/// A port from 1024 that is not among these.
fn unlisted(ports: &[u16]) -> u16 {
    (20_000..)
        .find(|port| !ports.contains(port))
        .unwrap_or(20_000)
}

fn connect(plan: &Plan, port: u16, pair: &Pair<'_>) -> Result<Outcome, String> {
    let addresses = [
        Ipv4Addr::LOCALHOST,
        plan.bridge.address,
        Ipv4Addr::new(192, 0, 2, 1),
    ];
    pair.compare(libc::EACCES, |agent| {
        let mut all = vec![];
        for address in addresses {
            let to = SocketAddrV4::new(address, port);
            let errno = match agent.ask(&Ask::Send(Shot::Tcp(to.into())))? {
                Answer::Landing(Landing::Refused(errno)) => Some(errno),
                Answer::Landing(Landing::Reset) => Some(libc::ECONNREFUSED),
                Answer::Landing(Landing::Sent | Landing::Answered) => None,
                _ => return Err(SOMETHING_ELSE.to_owned()),
            };
            all.push((to.to_string(), errno));
        }
        Ok(all)
    })
}

/// A directory that everybody may write to, with a file in it: what a descriptor that leaked would be of.
struct Bait {
    path: PathBuf,
    directory: OwnedFd,
}

/// The file in it.
pub const BAIT: &str = "bait";

impl Bait {
    fn lay() -> Result<Self, String> {
        use std::os::unix::fs::PermissionsExt;
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| e.to_string())?;
        let path =
            std::env::temp_dir().join(format!("lrpns-audit-{:016x}", u64::from_ne_bytes(random)));
        let failed = |e: std::io::Error| format!("make {}: {e}", path.display());
        std::fs::create_dir(&path).map_err(failed)?;
        let bait = path.join(BAIT);
        let made = std::fs::write(&bait, b"").and_then(|()| {
            std::fs::set_permissions(&bait, PermissionsExt::from_mode(0o666))?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777))?;
            Ok(std::fs::File::open(&path)?.into())
        });
        match made {
            Ok(directory) => Ok(Self { path, directory }),
            Err(e) => {
                let text = failed(e);
                let _ = std::fs::remove_dir_all(&path);
                Err(text)
            }
        }
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
