//! The same rules as nft's JSON (libnftables-json(5)); `nft -j -f` reads it.

use nftables::schema::Nftables;
use serde_json::{Value, json};

/// Prints `rules` as JSON.
///
/// The `nftables` crate has no `set` statement with a statement for each element. We say it as its `meter`, which is the
/// same (`update @name { key statement }`, but for a set that would be made by the way), and it is nft's `set` only here.
#[must_use]
pub fn to_json(rules: &Nftables<'_>) -> Value {
    let mut document =
        serde_json::to_value(rules).expect("the crate's types have string keys only");
    put_sets(&mut document);
    document
}

fn put_sets(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(meter) = members.remove("meter") {
                let set = json!({
                    "op": "update",
                    "elem": meter["key"],
                    "set": format!("@{}", meter["name"].as_str().unwrap_or_default()),
                    "stmt": [meter["stmt"]],
                });
                members.insert("set".to_owned(), set);
            }
            members.values_mut().for_each(put_sets);
        }
        Value::Array(items) => items.iter_mut().for_each(put_sets),
        _ => {}
    }
}
