//! Reads the manual's pages when lrpns is built, so that the program needs no parser of Markdown.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

mod markdown;
mod page;

fn main() -> Result<(), Box<dyn Error>> {
    let pages = Path::new("src/manual");
    println!("cargo::rerun-if-changed=src/manual/build.rs");
    println!("cargo::rerun-if-changed={}", pages.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    let mut names = vec![];
    for entry in fs::read_dir(pages)? {
        let name = entry?
            .file_name()
            .into_string()
            .map_err(|_| "a name that is not UTF-8")?;
        names.extend(name.strip_suffix(".md").map(str::to_owned));
    }
    for name in &names {
        let text = fs::read_to_string(pages.join(name).with_extension("md"))?;
        let page = serde_json::to_string(&markdown::parse(&text, &names))?;
        fs::write(out.join(name).with_extension("json"), page)?;
    }
    Ok(())
}
