import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, inject, it } from 'vitest';
import { prepareVaultDatabase, type VaultDatabase, type VaultDatabaseOptions } from '../../src/dev/vault-database.ts';
import { findVault } from '../../src/dev/vault-binary.ts';
import { vaultErrors } from '../../src/dev/vault-request.ts';
import { startVaultServer, type VaultServer, type VaultStorage } from '../../src/dev/vault-server.ts';
import { createTestCa } from './bundle-certificates.ts';

/** The server that suites start, built first when it is not there yet; or why there is none. */
const found = await provideVault();

/**
 * `describe` for what needs a real Vault. Without one its tests are skipped, loudly; in CI that is a failure, because what
 * was not run was not seen to work.
 */
export function describeVault(name: string, suite: () => void): void {
  if ('binary' in found) {
    describe(name, suite);
    return;
  }
  describe.skip(`${name} (needs a real Vault)`, suite);
  if (process.env['CI'] !== 'true') return;
  describe(name, () => {
    it('has a real Vault to run against, as it must in CI', () => {
      throw new Error(found.missing);
    });
  });
}

export interface TestVault extends VaultServer {
  /** The file that was started, for `vault` commands. */
  binary: string;
  /** Its database engine, for a sample target in the run's PostgreSQL; taken away with the Vault. */
  database(options: Omit<VaultDatabaseOptions, 'superuserUrl'>): Promise<VaultDatabase>;
  /** Raft only. */
  snapshot(): Promise<Buffer>;
  /** Back to what the snapshot holds; whatever came later, Vault has never heard of. */
  restore(snapshot: Buffer): Promise<void>;
  /** The process and all that it kept. */
  remove(): Promise<void>;
}

/** A real Vault for one test file. Call it in `beforeAll` of a `describeVault`, and `remove` in `afterAll`. */
export async function startVault({ storage = 'inmem', tls = false }: { storage?: VaultStorage; tls?: boolean } = {}) {
  if (!('binary' in found)) throw new Error(found.missing);
  const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-vault-'));
  const cleared = () => rm(dir, { recursive: true, force: true });
  const ca = tls ? createTestCa() : undefined;
  const certificate = ca === undefined ? {} : { tls: { ...ca.issue(['127.0.0.1', 'localhost']), ca: ca.certificate } };
  let server: VaultServer;
  try {
    server = await startVaultServer({ binary: found.binary, dir, storage, ...certificate });
  } catch (error) {
    await cleared();
    throw error;
  }
  const databases: VaultDatabase[] = [];
  const snapshots = async (method: 'GET' | 'POST', body?: Buffer) => {
    const answer = await server.request({
      method,
      path: 'sys/storage/raft/snapshot',
      token: server.rootToken,
      ...(body === undefined ? {} : { body }),
    });
    if (answer.status >= 300) throw new Error(`raft snapshot: ${vaultErrors(answer)}`);
    return answer.bytes;
  };
  const vault: TestVault = {
    ...server,
    binary: found.binary,
    database: async (options) => {
      const database = await prepareVaultDatabase(server, {
        user: `${options.target}_vault_${randomBytes(3).toString('hex')}`,
        ...options,
        superuserUrl: inject('postgresUrl'),
      });
      databases.push(database);
      return database;
    },
    snapshot: () => snapshots('GET'),
    restore: async (snapshot) => {
      await snapshots('POST', snapshot);
      await server.active();
    },
    remove: async () => {
      await server.kill();
      for (const database of databases) await database.remove();
      await cleared();
    },
  };
  return vault;
}

async function provideVault(): Promise<{ binary: string } | { missing: string }> {
  const present = findVault(process.env);
  if ('binary' in present) return present;
  const named = (process.env['LEASEHOLD_VAULT'] ?? '') !== '';
  const built = named ? present : await buildVault();
  if ('missing' in built) {
    process.stderr.write(`tests: SKIPPED, what needs a real Vault: ${built.missing}\n`);
  }
  return built;
}

/** Builds one, or waits for whoever builds it already. Its progress goes to stderr as it comes. */
async function buildVault(): Promise<{ binary: string } | { missing: string }> {
  process.stderr.write(
    'tests: there is no Vault server yet; it is built now, which takes some minutes the first time\n',
  );
  const script = path.join(import.meta.dirname, '..', '..', 'scripts', 'vault.mjs');
  const builder = spawn(process.execPath, [script, '--patient'], { stdio: ['ignore', 'ignore', 'inherit'] });
  const [code] = (await once(builder, 'exit')) as [number | null];
  return code === 0 ? findVault(process.env) : { missing: 'it could not be built; `npm run vault` says why' };
}
