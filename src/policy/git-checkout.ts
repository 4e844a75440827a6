import { readFile, realpath, stat } from 'node:fs/promises';
import path from 'node:path';

const hash = /^[0-9a-f]{40}([0-9a-f]{24})?$/;
const maxDepth = 32;
const maxBytes = 16 * 1024 * 1024;

/**
 * The commit that the checkout around this folder stands at; undefined when it is in none. Read from git's own files
 * (gitrepository-layout(5)), so that no git has to be installed where the broker runs. Whether files were edited since is not known.
 */
export async function gitCommit(directory: string): Promise<string | undefined> {
  try {
    let folder = await realpath(directory);
    for (let depth = 0; depth < maxDepth; depth++) {
      const repository = await repositoryOf(path.join(folder, '.git'));
      if (repository !== undefined) return await head(repository);
      const above = path.dirname(folder);
      if (above === folder) return undefined;
      folder = above;
    }
  } catch {
    // A checkout that cannot be read is as good as none: this is a note beside the revision, not part of it.
  }
  return undefined;
}

/** `.git` is a folder, or in a worktree or submodule a file that says where the folder is. */
async function repositoryOf(place: string): Promise<string | undefined> {
  const about = await stat(place).catch(() => undefined);
  if (about === undefined) return undefined;
  if (about.isDirectory()) return place;
  const target = /^gitdir: (.+)$/m.exec(await text(place))?.[1];
  return target === undefined ? undefined : path.resolve(path.dirname(place), target.trim());
}

async function head(repository: string): Promise<string | undefined> {
  const content = (await text(path.join(repository, 'HEAD'))).trim();
  if (hash.test(content)) return content;
  const reference = /^ref: (refs\/[^\0]+)$/.exec(content)?.[1];
  if (reference === undefined || reference.split('/').includes('..')) return undefined;
  // A worktree shares the references of the repository that it belongs to.
  const common = (await text(path.join(repository, 'commondir')).catch(() => '.')).trim();
  for (const base of [repository, path.resolve(repository, common)]) {
    const loose = (await text(path.join(base, reference)).catch(() => '')).trim();
    if (hash.test(loose)) return loose;
  }
  const packed = await text(path.join(path.resolve(repository, common), 'packed-refs')).catch(() => '');
  const line = packed.split('\n').find((entry) => entry.endsWith(` ${reference}`));
  const commit = line?.split(' ')[0];
  return commit !== undefined && hash.test(commit) ? commit : undefined;
}

async function text(file: string): Promise<string> {
  if ((await stat(file)).size > maxBytes) throw new Error(`${file} is too large`);
  return await readFile(file, 'utf8');
}
