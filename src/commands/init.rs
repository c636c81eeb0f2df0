//! `lrpns init`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::print;
use super::recipes::{RECIPES, Recipe};
use crate::commands::failure::Failure;
use crate::config;

/// Writes the commented example, or a recipe with the files that it refers to; never over something.
pub fn init(output: &Path, recipe: Option<&str>) -> Result<ExitCode, Failure> {
    let recipe = recipe.map(find).transpose()?;
    let text = recipe.map_or(config::EXAMPLE, |recipe| recipe.config);
    if output == Path::new("-") {
        print(text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut files = vec![(output.to_owned(), text)];
    if let Some(recipe) = recipe {
        let beside = |(name, text): &(&str, &'static str)| (output.with_file_name(name), *text);
        files.extend(recipe.files.iter().map(beside));
    }
    let mut written: Vec<&PathBuf> = vec![];
    for (path, text) in &files {
        if let Err(failure) = write(path, text) {
            for path in written {
                // All or nothing; what was written is ours.
                let _ = std::fs::remove_file(path);
            }
            return Err(failure);
        }
        written.push(path);
    }
    let names: Vec<String> = written
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let how = match recipe {
        Some(_) => "its first lines say what there is to do; then",
        None => "now",
    };
    eprintln!(
        "wrote {}; {how}: lrpns up -f {}",
        names.join(", "),
        output.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Lists the recipes.
pub fn list() -> Result<ExitCode, Failure> {
    let mut text = String::new();
    for recipe in RECIPES {
        text.push_str(&format!("{:<14}{}\n", recipe.name, recipe.about()));
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn find(name: &str) -> Result<&'static Recipe, Failure> {
    RECIPES
        .iter()
        .find(|recipe| recipe.name == name)
        .ok_or_else(|| {
            let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
            let name = crate::text::harmless(name, 64);
            Failure::usage(format!("there is no recipe `{name}`"))
                .hint(format!("one of {}", names.join(", ")))
        })
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let unable = |e: std::io::Error| Failure::unable(format!("write {}: {e}", path.display()));
    let mut file = std::fs::File::create_new(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::failed(format!("{} exists already", path.display())).hint(
                "another name: lrpns init -o FILE; a recipe's other files are written beside it",
            )
        }
        _ => unable(e),
    })?;
    file.write_all(text.as_bytes()).map_err(|e| {
        // Half of it would be taken for the whole.
        let _ = std::fs::remove_file(path);
        unable(e)
    })
}
