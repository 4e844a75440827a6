import { constants } from 'node:fs';
import type { BigIntStats } from 'node:fs';
import { open, readdir, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import type { Issue } from '../config/issue.ts';
import { fsReason } from '../config/secret-source.ts';

const maxFileBytes = 1024 * 1024;
const readable = 'let the user that runs this read it';

/** What one directory may hold; far above what a large estate needs. */
export interface DirectoryBounds {
  depth: number;
  entries: number;
  files: number;
  totalBytes: number;
}

const defaultBounds: DirectoryBounds = { depth: 8, entries: 20_000, files: 5_000, totalBytes: 32 * 1024 * 1024 };

export interface PolicyFile {
  /** As the operator would write it: below the configured directory. */
  file: string;
  /** Where it really is. */
  real: string;
  stat: BigIntStats;
}

export interface Listing {
  files: PolicyFile[];
  issues: Issue[];
}

/**
 * Lists the `*.yaml` and `*.yml` files of a tree, within bounds. Names that begin with a dot are passed over (editors'
 * files, and the inner folder of a mounted Kubernetes ConfigMap, whose visible files are links into it). A link that
 * leads out of the directory is refused: whoever may write there would choose which of the broker's files are read.
 */
export async function listPolicyFiles(directory: string, bounds = defaultBounds): Promise<Listing> {
  const files: PolicyFile[] = [];
  const issues: Issue[] = [];
  const refuse = (file: string, message: string, hint: string) =>
    issues.push({ file, line: 1, column: 1, path: '', message, hint });

  let root: string;
  try {
    root = await realpath(directory);
  } catch (error) {
    refuse(directory, fsReason(error), 'policy.directory names the folder of the policy documents');
    return { files, issues };
  }

  let entries = 0;
  const visit = async (folder: string, shown: string, depth: number): Promise<void> => {
    if (depth > bounds.depth) {
      refuse(shown, `is more than ${bounds.depth} folders deep`, 'move its files up');
      return;
    }
    let names;
    try {
      names = await readdir(folder, { withFileTypes: true });
    } catch (error) {
      refuse(shown, fsReason(error), readable);
      return;
    }
    names.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const entry of names) {
      if (++entries > bounds.entries || files.length > bounds.files) return;
      if (entry.name.startsWith('.')) continue;
      const file = path.join(shown, entry.name);
      const place = path.join(folder, entry.name);
      if (entry.isDirectory()) {
        await visit(place, file, depth + 1);
        continue;
      }
      const yaml = /\.ya?ml$/i.test(entry.name);
      if (!yaml && !entry.isSymbolicLink()) continue;
      try {
        const real = await realpath(place);
        if (!yaml) {
          if ((await stat(real)).isDirectory())
            refuse(file, 'is a link to a folder, which is not followed', 'copy the folder here');
          continue;
        }
        if (!real.startsWith(root + path.sep)) {
          refuse(file, 'is a link that leads out of the policy directory', 'copy the file here');
          continue;
        }
        const about = await stat(real, { bigint: true });
        if (!about.isFile()) refuse(file, 'is not a file', 'move it elsewhere');
        else if (about.size > BigInt(maxFileBytes))
          refuse(file, `is larger than ${maxFileBytes} bytes`, 'split it into several files');
        else files.push({ file, real, stat: about });
      } catch (error) {
        refuse(file, fsReason(error), readable);
      }
    }
  };
  await visit(root, directory, 0);

  const total = files.reduce((sum, file) => sum + file.stat.size, 0n);
  const beyond =
    entries > bounds.entries
      ? `${bounds.entries} entries`
      : files.length > bounds.files
        ? `${bounds.files} files`
        : total > BigInt(bounds.totalBytes)
          ? `${bounds.totalBytes} bytes`
          : undefined;
  if (beyond === undefined) return { files, issues };
  refuse(directory, `holds more than ${beyond}`, 'policy.directory names a folder of policy documents alone');
  return { files: [], issues };
}

/** Changes whenever a file is added, removed, replaced or written to. */
export function fingerprint({ files, issues }: Listing): string {
  return JSON.stringify([
    files.map(({ file, stat: s }) => [file, String(s.ino), String(s.size), String(s.mtimeNs), String(s.ctimeNs)]),
    issues.map((issue) => [issue.file, issue.message]),
  ]);
}

/** The text of a listed file; throws an Error whose message is for the operator. */
export async function readPolicyFile({ real, stat: listed }: PolicyFile): Promise<string> {
  let handle;
  try {
    // It was a plain file a moment ago. If it has become a link or a pipe since, this fails instead of hanging.
    handle = await open(real, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw new Error(fsReason(error));
  }
  try {
    const buffer = Buffer.alloc(Number(listed.size) + 1);
    let length = 0;
    while (length < buffer.length) {
      const { bytesRead } = await handle.read(buffer, length, buffer.length - length, null);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    // It has grown since it was listed: another look will see it whole.
    if (length > Number(listed.size)) throw new Error('is being written to');
    return decode(buffer.subarray(0, length));
  } finally {
    await handle.close();
  }
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new Error('is not UTF-8 text');
  }
}
