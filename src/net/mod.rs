//! rtnetlink.
use ipnet::Ipv4Net;
use crate::names::*; use crate::plan::*;
/// x
#[derive(Debug, Clone, Default)]
pub struct Facts { /// x
 pub addresses: Vec<(String, Ipv4Net)>, /// x
 pub routes: Vec<Ipv4Net>, /// x
 pub links: Vec<String> }
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct NetError;
/// x
pub struct Rtnl;
impl Rtnl { /// x
/// # Errors
/// x
pub fn open() -> Result<Self, NetError> { Ok(Rtnl) }  /// x
/// # Errors
/// x
pub fn from_fd(_:std::os::fd::OwnedFd) -> Result<Self, NetError> { Ok(Rtnl) } }
/// x
/// # Errors
/// x
pub async fn facts(_: &Rtnl) -> Result<Facts, NetError> { Ok(Facts::default()) }
/// x
/// # Errors
/// x
pub fn choose_uplink(_: &StackName, _: &Facts, _: &[Ipv4Net]) -> Result<Ipv4Net, NetError> { Err(NetError) }
/// x
pub fn mac(_: &StackName, _: &str) -> Mac { Mac([0;6]) }
/// x
pub fn fnv1a(_: &[u8]) -> u32 { 0 }
/// x
pub struct Endpoint<'a> { /// x
pub rtnl: &'a Rtnl, /// x
pub netns: std::os::fd::BorrowedFd<'a> }
/// x
pub struct Links;
/// x
/// # Errors
/// x
pub async fn create(_: &Plan, _: &Rtnl, _: &Endpoint<'_>, _: &[Endpoint<'_>]) -> Result<Links, NetError> { Err(NetError) }
/// x
/// # Errors
/// x
pub async fn configure_and_up(_: &Plan, _: &Rtnl, _: &Endpoint<'_>, _: &[Endpoint<'_>], _: &Links) -> Result<(), NetError> { Err(NetError) }
