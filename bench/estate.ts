import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import path from 'node:path';
import { createClient, type Client, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import pg from 'pg';
import { devWorkload, prepareDevEnvironment } from '../src/dev/environment.ts';
import { freePort, startEmbeddedPostgres } from '../src/dev/postgres.ts';
import { CredentialService } from '../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../src/gen/leasehold/v1/task_service_pb.js';
import { startDevVault } from '../src/dev/vault-estate.ts';
import type { VaultServer } from '../src/dev/vault-server.ts';
import { startChild } from './child.ts';
import type { SliceResult, Slice, Usage } from './protocol.ts';

/**
 * Two real PostgreSQL servers, with the settings that they come with, one for the broker and one with the target, and one
 * process for the load. Everything goes away at `stop`.
 */
export interface Machine {
  /** What the numbers depend on, as the server itself says. */
  settings: Record<string, string>;
  load(slice: Slice): Promise<SliceResult>;
  startBroker(name: string, options: BrokerOptions): Promise<Estate>;
  stop(): Promise<void>;
}

export interface BrokerOptions {
  profileDir?: string;
  /** A Vault server to start beside it, on raft storage, with a database engine for the target. */
  vault?: string;
}

/** One broker in a process of its own, with its database and its target. */
export interface Estate {
  grpcPort: number;
  httpUrl: string;
  policyDir: string;
  /** Superuser, in the broker's own database. */
  database: pg.Client;
  databaseUrl: string;
  /** Superuser, in the target. */
  target: pg.Client;
  targetUrl: string;
  vault: VaultServer | undefined;
  /** As the orchestrator. */
  tasks: Client<typeof TaskService>;
  /** As the agent. */
  credentials: Client<typeof CredentialService>;
  mint(workload: string): Promise<string>;
  usage(): Promise<Usage>;
  stop(): Promise<void>;
}

export async function startMachine(
  base: string | undefined,
  { targetCore = false, sessions = false }: { targetCore?: boolean; sessions?: boolean } = {},
): Promise<Machine> {
  const dir = await mkdtemp(path.join(base ?? tmpdir(), 'leasehold-bench-'));
  // As root the server runs as the user `postgres`, who has to get through to its data.
  await chmod(dir, 0o755);
  const closers: (() => Promise<unknown>)[] = [() => rm(dir, { recursive: true, force: true })];
  const stop = async () => {
    for (const close of closers.splice(0).reverse()) await close();
  };
  try {
    if (targetCore) reserveCore();
    const startServer = async (name: string) => {
      const server = await startEmbeddedPostgres({
        dataDir: path.join(dir, name),
        password: randomBytes(24).toString('hex'),
        settings: ['max_connections=300'],
      });
      closers.push(() => server.stop());
      return {
        pid: server.pid(),
        url: `postgres://${server.user}:${server.password}@${server.host}:${server.port}/postgres`,
      };
    };
    const own = await startServer('postgres');
    const target = await startServer('target');
    if (targetCore) moveToReservedCore(target.pid);
    const { child: load } = startChild<Slice, SliceResult>('load', [], { ownSession: sessions });
    closers.push(() => load.stop());
    return {
      settings: await durability(own.url),
      load: load.ask,
      startBroker: async (name, options) => {
        const estate = await startEstate(path.join(dir, name), own.url, target.url, name, { ...options, sessions });
        closers.push(estate.stop);
        // Before anything is measured: Vault belongs to the same other machine.
        if (targetCore && estate.vault !== undefined) moveToReservedCore(estate.vault.pid());
        return estate;
      },
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function startEstate(
  dir: string,
  superuserUrl: string,
  targetSuperuserUrl: string,
  name: string,
  { profileDir, vault: binary, sessions }: BrokerOptions & { sessions: boolean },
): Promise<Estate> {
  const [grpcPort, httpPort] = [await freePort(), await freePort()];
  const unbounded = { callsPerSecond: 1_000_000, burst: 1_000_000 };
  const vault = binary === undefined ? undefined : await startDevVault({ dir, binary, storage: 'raft' });
  const environment = await prepareDevEnvironment({
    dir,
    superuserUrl,
    targetSuperuserUrl,
    database: `b_${name}`,
    target: `w_${name}`,
    grpcPort,
    httpPort,
    overrides: {
      // The load is one caller; its bounds are not what is measured.
      server: {
        grpc: { listen: `127.0.0.1:${grpcPort}` },
        http: { listen: `127.0.0.1:${httpPort}` },
        limits: unbounded,
      },
      // So that a renewed lease is settled while the renewals are still being measured, not in somebody else's slice.
      tasks: { renewalOverlap: '1s' },
      calls: { maxPerTask: 10_000_000 },
      ...(vault && { vault: vault.section }),
      log: { level: 'warn', format: 'text' },
    },
  });
  const { policyDir } = environment;
  await vault?.prepare({ superuserUrl: targetSuperuserUrl, database: environment.target.database, policyDir });
  const mint = (workload: string) =>
    environment.trustDomain.mint({ workload: devWorkload(workload), audience: 'leasehold', ttl: 3_600_000 });
  const served = servedWith();
  const profile = profileDir === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${profileDir}`];
  const { child, first } = startChild<object, Usage>('broker', [environment.configFile], {
    nodeOptions: [...served.nodeOptions, ...profile],
    env: served.env,
    ownSession: sessions,
  });
  await first();

  const inDatabase = (url: string, database: string) => Object.assign(new URL(url), { pathname: `/${database}` }).href;
  const databaseUrl = inDatabase(superuserUrl, `b_${name}`);
  const database = new pg.Client({ connectionString: databaseUrl, options: '-c search_path=leasehold' });
  await database.connect();
  const targetUrl = inDatabase(targetSuperuserUrl, environment.target.database);
  const target = new pg.Client({ connectionString: targetUrl });
  await target.connect();
  const transport = async (workload: string) => {
    const token = await mint(workload);
    const authorize: Interceptor = (next) => async (request) => {
      request.header.set('authorization', `Bearer ${token}`);
      return await next(request);
    };
    const baseUrl = `http://127.0.0.1:${httpPort}`;
    return createConnectTransport({ baseUrl, httpVersion: '1.1', interceptors: [authorize] });
  };
  return {
    grpcPort,
    httpUrl: `http://127.0.0.1:${httpPort}`,
    policyDir,
    database,
    databaseUrl,
    target,
    targetUrl,
    vault: vault?.server,
    tasks: createClient(TaskService, await transport('orchestrator')),
    credentials: createClient(CredentialService, await transport('agent/analyst')),
    mint,
    usage: () => child.ask({}),
    stop: async () => {
      await Promise.all([database.end(), target.end()]);
      await child.stop();
      await vault?.server.kill();
    },
  };
}

const lastCore = availableParallelism() - 1;

/** From now on this process, and what it starts, keeps off the last core. */
function reserveCore(): void {
  if (lastCore < 1) throw new Error('a core of its own for the target needs two cores at least');
  execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', `0-${lastCore - 1}`, String(process.pid)]);
}

/** All its threads, and its processes to come as well: a server's backends are its children. */
function moveToReservedCore(pid: number): void {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
  for (const id of [String(pid), ...children]) {
    execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', String(lastCore), id]);
  }
}

/** How `npm run leasehold` starts a broker. */
function servedWith(): { nodeOptions: string[]; env: Record<string, string> } {
  const file = path.join(import.meta.dirname, '..', 'package.json');
  const { config } = JSON.parse(readFileSync(file, 'utf8')) as { config: Record<string, string> };
  return {
    nodeOptions: config['broker_node_options']!.split(' '),
    env: { MALLOC_ARENA_MAX: config['broker_malloc_arena_max']! },
  };
}

/** Refuses a server on which a commit is not a commit: the numbers would be worth nothing. */
async function durability(superuserUrl: string): Promise<Record<string, string>> {
  const client = new pg.Client({ connectionString: superuserUrl });
  await client.connect();
  try {
    const { rows } = await client.query<{ name: string; setting: string }>(
      `SELECT name, setting FROM pg_settings
       WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes', 'wal_sync_method') ORDER BY name`,
    );
    const settings = Object.fromEntries(rows.map((row) => [row.name, row.setting]));
    if (settings['fsync'] !== 'on' || settings['synchronous_commit'] !== 'on') {
      throw new Error('the database of a benchmark has to have fsync and synchronous_commit on');
    }
    return settings;
  } finally {
    await client.end();
  }
}
