//! Who may use what a stack has on disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Found, Scene, nothing_of};
use crate::audit::catalogue::{Probe, Side};
use crate::audit::{Group, Outcome};

/// The stack's directory, with all that is in it.
pub const STATE: Probe = Probe {
    id: "leak-state",
    group: Group::Leaks,
    from: Side::Look(look),
    title: "owner and mode of the stack's directory, of all that is in it and of those above",
    why: "unix(7): who may write to the control socket commands the supervisor; a lock that others hold is no lock",
    expected: "what the stack has made, of its owner alone; above, nobody else may write, or no name of another's can be replaced",
};

/// What there is in it ([`crate::state`]); the third while it is written.
const NAMES: [&str; 4] = ["lock", "plan.json", "plan.json.new", "control.sock"];

fn look(scene: &Scene<'_>) -> Found {
    let plan = scene.plan();
    let directory = &plan.state_dir;
    let owner = plan.owner;
    let mut wrong = vec![];
    let mut check = |path: &Path, is_above: bool| -> std::io::Result<()> {
        let meta = std::fs::symlink_metadata(path)?;
        let mode = meta.mode() & 0o7777;
        // The sticky bit: in /tmp everybody may write, and nobody can rename what is another's.
        let others = match is_above {
            true if meta.is_dir() && mode & 0o1000 != 0 => 0,
            true => 0o022,
            false => 0o077,
        };
        let is_ours = meta.uid() == owner || is_above && meta.uid() == 0;
        if !is_ours || mode & others != 0 || meta.is_symlink() {
            let (path, uid) = (path.display(), meta.uid());
            wrong.push(format!("{path} is of uid {uid} with mode {mode:o}"));
        }
        Ok(())
    };
    let (mut count, mut strange) = (0, vec![]);
    let mut all = || -> std::io::Result<()> {
        for above in directory.ancestors().skip(1) {
            check(above, true)?;
        }
        check(directory, false)?;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry
                .file_name()
                .to_str()
                .is_none_or(|name| !NAMES.contains(&name))
            {
                strange.push(format!("{} is unexpected", entry.path().display()));
            }
            check(&entry.path(), false)?;
            count += 1;
        }
        Ok(())
    };
    let done = all();
    wrong.extend(strange);
    let outcome = match done {
        Ok(()) => nothing_of(&wrong, format!("{count} files, of uid {owner} alone")),
        Err(e) => Outcome::unknown(format!("{}: {e}", directory.display())),
    };
    vec![("host".to_owned(), outcome)]
}
