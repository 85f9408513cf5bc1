//! The file of the key that a node makes for itself: for programs of the same user on the same machine.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, fchmod, fstat, mkdir, open, openat, renameat, unlinkat};
use rustix::process::geteuid;

use crate::config::key_folders;

/// A key in files of this user, which are removed when this is dropped.
pub struct KeyFile {
    folder: PathBuf,
    names: Vec<String>,
    key: String,
}

/// Bytes of such a file that are read: more than any of them has.
const FILE_BYTES_MAX: u64 = 1024;

const FOLDER_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

impl KeyFile {
    /// Keeps a key in a file for each port at which its node is reached, in the first folder that takes it.
    ///
    /// # Errors
    ///
    /// When no folder takes it.
    pub fn write(key: &str, ports: &[u16]) -> anyhow::Result<Self> {
        let mut failed = None;
        for folder in key_folders() {
            match Self::write_in(folder, key, ports) {
                Ok(file) => return Ok(file),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => bail!("neither XDG_RUNTIME_DIR, XDG_STATE_HOME nor HOME says where"),
        }
    }

    fn write_in(folder: PathBuf, key: &str, ports: &[u16]) -> anyhow::Result<Self> {
        let open = own_folder(&folder).with_context(|| format!("{}", folder.display()))?;
        let mut file = Self {
            folder,
            names: Vec::new(),
            key: key.to_owned(),
        };
        for port in ports {
            let name = file_name(*port);
            let written = write_at(&open, &name, key);
            let path = file.folder.join(&name);
            written.with_context(|| format!("cannot write {}", path.display()))?;
            file.names.push(name);
        }
        Ok(file)
    }

    /// Where it is, by the first port.
    pub fn path(&self) -> PathBuf {
        let name = self.names.first().map(String::as_str);
        self.folder.join(name.unwrap_or_default())
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        for name in &self.names {
            let path = self.folder.join(name);
            // A node that came later, on the same port of another address, may have put its own in its place.
            if read(&path).is_ok_and(|key| key == self.key) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// The key of the node of this user and machine at that port, where there is one.
pub fn find(port: u16) -> Option<String> {
    let mut folders = key_folders().into_iter();
    folders.find_map(|folder| read(&folder.join(file_name(port))).ok())
}

fn file_name(port: u16) -> String {
    format!("{port}.key")
}

fn read(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    if fstat(&file)?.st_uid != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut key = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut key)?;
    match key.trim() {
        "" => Err(io::ErrorKind::InvalidData.into()),
        key => Ok(key.to_owned()),
    }
}

/// Opens the folder, which is this user's and nobody else can look into. Makes it where it is not there yet.
fn own_folder(folder: &Path) -> anyhow::Result<File> {
    let parent = folder.parent().context("it has no parent")?;
    let mut parents = DirBuilder::new();
    parents.recursive(true).mode(FOLDER_MODE.bits());
    let made = parents.create(parent);
    made.context("cannot make the folder that it is in")?;
    match mkdir(folder, FOLDER_MODE) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error).context("cannot make it"),
    }
    // A symbolic link of somebody else would lead elsewhere.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = open(folder, flags, Mode::empty()).context("it is no folder")?;
    let status = fstat(&open)?;
    let mine = status.st_uid == geteuid().as_raw();
    ensure!(mine, "it is another user's");
    fchmod(&open, FOLDER_MODE).context("cannot close it to others")?;
    Ok(File::from(open))
}

/// In one step, in place of whatever stands there: a file of an earlier node, or a link, which is not followed.
fn write_at(folder: &File, name: &str, key: &str) -> io::Result<()> {
    let draft = format!(".{name}.{:016x}", rand::random::<u64>());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(folder, &draft, flags, FILE_MODE)?;
    // Whatever the umask is.
    fchmod(&file, FILE_MODE)?;
    let mut file = File::from(file);
    let written = writeln!(file, "{key}");
    let moved = written.and_then(|()| Ok(renameat(folder, &draft, folder, name)?));
    if moved.is_err() {
        let _ = unlinkat(folder, &draft, AtFlags::empty());
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_file_is_for_its_user_alone_and_goes_with_its_node() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("unisono");
        let file = KeyFile::write_in(folder.clone(), "secret", &[8080, 9090]).unwrap();
        assert_eq!(file.path(), folder.join("8080.key"));
        assert_eq!(mode(&folder), 0o700);
        for name in ["8080.key", "9090.key"] {
            let path = folder.join(name);
            assert_eq!(mode(&path), 0o600);
            assert_eq!(fs::read_to_string(&path).unwrap(), "secret\n");
            assert_eq!(read(&path).unwrap(), "secret");
        }
        drop(file);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn what_stands_in_its_place_is_replaced_and_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("unisono");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, "mine").unwrap();
        symlink(&elsewhere, folder.join("1.key")).unwrap();
        fs::write(folder.join("2.key"), "of an earlier node").unwrap();
        fs::set_permissions(folder.join("2.key"), fs::Permissions::from_mode(0o644)).unwrap();

        let file = KeyFile::write_in(folder.clone(), "secret", &[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
        assert_eq!(mode(&folder), 0o700);
        for name in ["1.key", "2.key"] {
            let path = folder.join(name);
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(
                (mode(&path), read(&path).unwrap().as_str()),
                (0o600, "secret")
            );
        }
        // Of two on one port the last is found, and stays when the first ends.
        let later = KeyFile::write_in(folder.clone(), "other", &[2]).unwrap();
        drop(file);
        assert_eq!(read(&folder.join("2.key")).unwrap(), "other");
        drop(later);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_a_link_or_nowhere_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = home.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let folder = home.path().join("unisono");
        symlink(&elsewhere, &folder).unwrap();
        assert!(KeyFile::write_in(folder, "secret", &[1]).is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::write(home.path().join("file"), "").unwrap();
        let nowhere = home.path().join("file/unisono");
        assert!(KeyFile::write_in(nowhere, "secret", &[1]).is_err());
        let new = home.path().join("not/there/yet/unisono");
        drop(KeyFile::write_in(new, "secret", &[1]).unwrap());
        assert_eq!(mode(&home.path().join("not")), 0o700);
        let link = elsewhere.join("1.key");
        symlink("/etc/hostname", &link).unwrap();
        assert!(read(&link).is_err());
    }
}
