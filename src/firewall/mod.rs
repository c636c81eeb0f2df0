//! nftables.
/// x
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Batch { /// x
pub bytes: Vec<u8> }
/// x
pub struct Socket;
impl Socket { /// x
/// # Errors
/// x
pub fn open() -> Result<Self, LoadError> { Ok(Socket) } }
/// x
/// # Errors
/// x
pub fn transact(_: &mut Socket, _: &Batch) -> Result<(), LoadError> { Ok(()) }
/// x
#[derive(Debug, Clone)]
pub enum Forwarding { /// x
Open, /// x
Closed { /// x
why: String } }
/// x
/// # Errors
/// x
pub fn forwarding() -> std::io::Result<Forwarding> { Ok(Forwarding::Open) }
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct EncodeError;
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct LoadError(#[from] std::io::Error);
/// x
pub fn sidecar_rules(_: &crate::plan::Plan) -> u32 { 0 }
/// x
pub fn host_rules(_: &crate::plan::Plan) -> u32 { 0 }
/// x
/// # Errors
/// x
pub fn encode(_: &u32) -> Result<Batch, EncodeError> { Err(EncodeError) }
/// x
/// # Errors
/// x
pub fn encode_owned(_: &u32) -> Result<Batch, EncodeError> { Err(EncodeError) }
