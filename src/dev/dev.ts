import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { loadConfig } from '../config/load-config.ts';
import type { Reached } from '../domain/telemetry.ts';
import { startBroker, type Broker } from '../root.ts';
import { devWorkload, prepareDevEnvironment, type DevEnvironment } from './environment.ts';
import { forgetDevVault, startDevVault, type DevVault } from './vault-estate.ts';
import type { VaultServer } from './vault-server.ts';
import { freePort, startEmbeddedPostgres, type EmbeddedPostgres } from './postgres.ts';

export interface DevOptions {
  /** Kept between runs: database, trust domain, policy documents to edit, tokens. */
  dir: string;
  grpcPort?: number;
  httpPort?: number;
  /** A superuser of a PostgreSQL of your own, instead of the embedded one. */
  superuserUrl?: string;
  /** Names of the two databases there: the broker's own, and the sample target. */
  database?: string;
  target?: string;
  /** Merged over the generated configuration, section by section. */
  overrides?: Record<string, object>;
  /** The Vault server to start beside it, and its port. */
  vault?: { binary: string; port?: number };
  /** Receives the broker's log lines. */
  write?: (line: string) => void;
  reached?: Reached;
  /** One line per step while things start. */
  progress?: (line: string) => void;
}

export interface Dev extends DevEnvironment {
  broker: Broker;
  httpUrl: string;
  superuserUrl: string;
  /** Started when asked for. */
  vault?: VaultServer;
  /** Name → file with a token of that workload, kept fresh. */
  tokens: Readonly<Record<string, string>>;
  stop(): Promise<void>;
}

/** Workloads that get a token file. */
const workloads = {
  orchestrator: 'orchestrator',
  analyst: 'agent/analyst',
  operator: 'operator',
  auditor: 'auditor',
  reports: 'tool/reports',
} as const;
const tokenLife = 3_600_000;

/** A whole Leasehold on this machine, for development: real PostgreSQL, real tokens, one command. */
export async function startDev(options: DevOptions): Promise<Dev> {
  const dir = path.resolve(options.dir);
  const progress = options.progress ?? (() => undefined);
  await mkdir(dir, { recursive: true });
  const embedded = options.superuserUrl === undefined ? await startDatabase(dir, progress) : undefined;
  let vault: DevVault | undefined;
  try {
    if (options.vault !== undefined) {
      progress('starting Vault (development only)');
      vault = await startDevVault({ dir, ...options.vault });
    }
    const superuserUrl =
      options.superuserUrl ??
      `postgres://${embedded!.user}:${embedded!.password}@${embedded!.host}:${embedded!.port}/postgres`;
    progress('preparing the databases, the trust domain and the first policy');
    const target = options.target ?? 'warehouse';
    const environment = await prepareDevEnvironment({
      dir,
      superuserUrl,
      database: options.database ?? 'leasehold',
      target,
      grpcPort: options.grpcPort ?? (await freePort()),
      httpPort: options.httpPort ?? (await freePort()),
      overrides: { log: { format: 'text' }, ...(vault && { vault: vault.section }), ...options.overrides },
    });
    const { policyDir } = environment;
    if (vault === undefined) await forgetDevVault(policyDir);
    else await vault.prepare({ superuserUrl, database: target, policyDir });
    progress('starting the broker');
    const broker = await startBroker({
      config: loadConfig({ path: environment.configFile, env: process.env }),
      ...(options.write === undefined ? {} : { write: options.write }),
      ...(options.reached === undefined ? {} : { reached: options.reached }),
    });
    const tokens = await writeTokens(dir, environment);
    const refresh = setInterval(() => void writeTokens(dir, environment).catch(() => undefined), tokenLife / 2);
    return {
      ...environment,
      broker,
      httpUrl: `http://127.0.0.1:${broker.httpPort}`,
      superuserUrl,
      ...(vault && { vault: vault.server }),
      tokens,
      stop: async () => {
        clearInterval(refresh);
        await broker.stop();
        await vault?.stop();
        await embedded?.stop();
      },
    };
  } catch (error) {
    await vault?.stop();
    await embedded?.stop();
    throw error;
  }
}

async function startDatabase(dir: string, progress: (line: string) => void): Promise<EmbeddedPostgres> {
  progress('starting the embedded PostgreSQL (development only)');
  // As root the server runs as the user `postgres`, who has to get through to its data.
  await chmod(dir, 0o755);
  const passwordFile = path.join(dir, 'postgres-password');
  if (!existsSync(passwordFile)) await writeFile(passwordFile, randomBytes(24).toString('hex'), { mode: 0o600 });
  return await startEmbeddedPostgres({
    dataDir: path.join(dir, 'postgres'),
    password: await readFile(passwordFile, 'utf8'),
    settings: ['max_connections=200'],
  });
}

async function writeTokens(dir: string, environment: DevEnvironment): Promise<Record<string, string>> {
  const folder = path.join(dir, 'tokens');
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const files: Record<string, string> = {};
  for (const [name, workload] of Object.entries(workloads)) {
    const file = path.join(folder, `${name}.jwt`);
    const token = await environment.trustDomain.mint({
      workload: devWorkload(workload),
      audience: 'leasehold',
      ttl: tokenLife,
    });
    // Whole or not there: somebody may be reading it.
    await writeFile(`${file}.new`, token, { mode: 0o600 });
    await rename(`${file}.new`, file);
    files[name] = file;
  }
  return files;
}
