import { createHash } from 'node:crypto';
import { accessSync, constants, existsSync, readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';

/** The Go module that names the server for development, in a checkout; an installed Leasehold carries none. */
export const vaultToolModule = path.join(import.meta.dirname, '..', '..', 'test', 'tools', 'vault');
const buildCommand = 'npm run vault';

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Where the server is, or goes, that scripts/vault.mjs builds: outside the checkout, under a name that changes with anything
 * that goes into it. Undefined where there is no module to build it from.
 */
export function builtVault(env: Environment): string | undefined {
  const files = ['go.mod', 'go.sum'].map((name) => path.join(vaultToolModule, name));
  if (!files.every((file) => existsSync(file))) return undefined;
  const [module, sums] = files.map((file) => readFileSync(file, 'utf8'));
  const version = /^\s*github\.com\/hashicorp\/vault (v\S+)/m.exec(module!)?.[1] ?? 'unknown';
  const digest = createHash('sha256').update(`${process.platform} ${process.arch}\n${module}\n${sums}`).digest('hex');
  const cache = env['XDG_CACHE_HOME'] || path.join(homedir(), '.cache');
  const name = process.platform === 'win32' ? 'vault.exe' : 'vault';
  return path.join(cache, 'leasehold', 'vault', `${version}-${digest.slice(0, 12)}`, name);
}

/** A server to start: the one that LEASEHOLD_VAULT names, or the built one, or (`onPath`) whatever `vault` or `bao` is. */
export function findVault(env: Environment, { onPath = false } = {}): { binary: string } | { missing: string } {
  const named = env['LEASEHOLD_VAULT'];
  if (named !== undefined && named !== '') {
    return runnable(named) ? { binary: named } : { missing: `LEASEHOLD_VAULT names ${named}, which cannot be run` };
  }
  const built = builtVault(env);
  if (built !== undefined && runnable(built)) return { binary: built };
  const folders = onPath ? (env['PATH'] ?? '').split(path.delimiter).filter((folder) => folder !== '') : [];
  for (const name of ['vault', 'bao']) {
    for (const folder of folders) {
      const file = path.join(folder, name);
      if (runnable(file)) return { binary: file };
    }
  }
  const build = built === undefined ? '' : `run \`${buildCommand}\` (needs Go), or `;
  const install = onPath ? 'install Vault or OpenBao, or ' : '';
  return { missing: `there is no Vault server here: ${build}${install}set LEASEHOLD_VAULT to the path of one` };
}

function runnable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}
