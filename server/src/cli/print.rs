//! What people and programs read of a command.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use comfy_table::{Table, presets};

use super::outcome::Failure;

/// Prints, and says when nobody reads it, where `println!` would panic.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Prints a line.
pub fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Says something beside the result.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "unisono: {}", visible(text));
}

/// A table: with borders on a terminal; elsewhere with blanks between its columns, for `awk` and the like.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let terminal = io::stdout().is_terminal();
    print(&table_text(header, rows, terminal))
}

fn table_text(header: &[&str], rows: Vec<Vec<String>>, borders: bool) -> String {
    let mut table = Table::new();
    table.set_header(header.iter().map(|title| title.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    if borders {
        table.load_style(presets::UTF8_FULL_CONDENSED);
    } else {
        table.load_style(presets::NOTHING);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// Without characters that would do something to a terminal: what others have sent is not to be trusted with one.
pub fn visible(text: &str) -> Cow<'_, str> {
    let acts = |char: char| char.is_control() && char != '\n';
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let shown = |char| {
        if acts(char) {
            char::REPLACEMENT_CHARACTER
        } else {
            char
        }
    };
    Cow::Owned(text.chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_for_programs_and_have_borders_for_people() {
        let rows = || {
            vec![
                vec!["/a".to_owned(), "1".to_owned()],
                vec!["/longer".to_owned(), "12".to_owned()],
            ]
        };
        let plain = table_text(&["room", "sockets"], rows(), false);
        assert_eq!(plain, "ROOM     SOCKETS\n/a       1\n/longer  12\n");
        let framed = table_text(&["room", "sockets"], rows(), true);
        assert!(framed.starts_with('┌') && framed.contains("│ /longer"));
    }

    #[test]
    fn nothing_that_is_shown_drives_the_terminal() {
        assert_eq!(
            visible("a\u{1b}[2Jb\u{9b}c\nd é"),
            "a\u{fffd}[2Jb\u{fffd}c\nd é"
        );
    }
}
