//! The same rules as nft's JSON (libnftables-json(5)); `nft -j -f` reads it.

use nftables::schema::Nftables;
use serde_json::{Value, json};

/// Prints `rules` as JSON.
///
/// The `nftables` crate has no `set` statement with a statement for each element. We say it as its `meter`, which is the
/// same (`update @name { key statement }`, but for a set that would be made by the way), and it is nft's `set` only here.
/// Nor has it what a set gives to each of its elements: that is a counter if they have one.
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
            let is_counted = |element: &Value| element["elem"]["counter"].is_object();
            if let Some(Value::Array(elements)) = members.get("elem")
                && elements.first().is_some_and(is_counted)
            {
                members.insert("stmt".to_owned(), json!([{ "counter": null }]));
            }
            if let Some(Value::Object(element)) = members.get_mut("elem") {
                element.retain(|_, value| !value.is_null());
            }
            members.values_mut().for_each(put_sets);
        }
        Value::Array(items) => items.iter_mut().for_each(put_sets),
        _ => {}
    }
}
