//! The ids that an ordinary user may give away besides their own: /etc/subuid and /etc/subgid (subuid(5)), and the helpers that
//! map them (newuidmap(1)).
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::Accounts;

/// Where the helpers are looked for: set-user-ID programs are not taken from whoever's PATH.
const PLACES: [&str; 4] = [
    "/usr/bin",
    "/bin",
    "/usr/local/bin",
    "/run/current-system/sw/bin",
];

/// One of the helpers.
#[must_use]
pub fn helper(name: &str) -> Option<PathBuf> {
    let all = PLACES.iter().map(|place| Path::new(place).join(name));
    all.into_iter().find(|path| path.exists())
}

/// The first of so many uids and of so many gids that the user of this uid may give away; or what is missing, and what helps.
///
/// # Errors
/// Both, in words.
pub fn of(uid: u32, many: u32) -> Result<(u32, u32), (String, String)> {
    for name in ["newuidmap", "newgidmap"] {
        if helper(name).is_none() {
            return Err((
                format!("there is no {name}, which maps an ordinary user's ranges"),
                "apt install uidmap (Debian), dnf install shadow-utils".to_owned(),
            ));
        }
    }
    let accounts = Accounts::of(Path::new("/")).unwrap_or_default();
    let name = accounts.user(uid).map(|(name, _)| name.to_owned());
    let who = name.clone().unwrap_or_else(|| uid.to_string());
    let first = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        first(&text, (uid, name.as_deref()), many).ok_or_else(|| {
            let option = if file.ends_with("subuid") {
                "uids"
            } else {
                "gids"
            };
            (
                format!("{who} has no {many} ids in {file}"),
                format!(
                    "as root: usermod --add-sub{option} 100000-{} {who}",
                    100_000 + many
                ),
            )
        })
    };
    Ok((first("/etc/subuid")?, first("/etc/subgid")?))
}

/// The first range of the user's that is large enough.
fn first(text: &str, (uid, name): (u32, Option<&str>), many: u32) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (whose, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let own = Some(whose) == name || whose.parse() == Ok(uid);
        let (first, count): (u32, u32) = (first.parse().ok()?, count.trim().parse().ok()?);
        (own && first > 0 && count >= many && first.checked_add(many).is_some()).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_that_is_the_users_and_large_enough_counts() {
        let text = "other:100000:65536\nme:1000:10\nbad\nme:x:65536\nme:165536:65536\n4321:300000:65535\nme:0:70000\n";
        assert_eq!(first(text, (1, Some("me")), 65_535), Some(165_536));
        assert_eq!(first(text, (4321, None), 65_535), Some(300_000));
        assert_eq!(first(text, (4321, Some("nobody")), 65_535), Some(300_000));
        assert_eq!(first(text, (1, Some("you")), 65_535), None);
        assert_eq!(first("me:4294967000:65536", (1, Some("me")), 65_535), None);
    }
}
