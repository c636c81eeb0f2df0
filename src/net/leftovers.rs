//! Links that a stack leaves behind: for some 40 ms always, for longer never, unless something of the kernel's broke.
#![forbid(unsafe_code)]

use std::time::Duration;

use netlink_packet_route::link::LinkAttribute;
use tokio::time::Instant;

use super::{ALIAS_PREFIX, Error, Rtnl, facts, remove_link};
use crate::names::{IfName, StackName};

/// How long the kernel may take to clean a network namespace up that nothing holds any more.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Waits until the host has no link of that name: the namespace that its other end was in is gone then, and so is every
/// process that was in it.
///
/// # Errors
/// [`Error`]; that the link is there after 10 s is one.
pub async fn wait_until_gone(name: IfName) -> Result<(), Error> {
    let host = Rtnl::open()?;
    let deadline = Instant::now() + GONE_WITHIN;
    if host.wait_gone("host", name.as_str(), deadline).await? {
        return Ok(());
    }
    Err(Error::StillThere {
        link: name.as_str().to_owned(),
        seconds: GONE_WITHIN.as_secs(),
    })
}

/// Removes every link of ours in this namespace whose stack is not among `alive`; tells how many there were.
///
/// # Errors
/// [`Error`] names the step.
pub async fn remove_leftover_links(alive: &[StackName]) -> Result<usize, Error> {
    let host = Rtnl::open()?;
    let mut removed = 0;
    for name in facts(&host).await?.links {
        let Some(link) = host.link("host", &name).await? else {
            continue;
        };
        let stack = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfAlias(alias) => alias.strip_prefix(ALIAS_PREFIX),
                _ => None,
            });
        if stack.is_some_and(|stack| !alive.iter().any(|alive| alive.as_str() == stack)) {
            remove_link(&host, &name).await?;
            removed += 1;
        }
    }
    Ok(removed)
}
