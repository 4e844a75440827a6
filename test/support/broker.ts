import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { DescService } from '@bufbuild/protobuf';
import { createClient, type Client, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { inject } from 'vitest';
import type { FaultPoint } from '../../src/domain/telemetry.ts';
import { devWorkload, prepareDevEnvironment, type DevEnvironment } from '../../src/dev/environment.ts';
import { freePort } from '../../src/dev/postgres.ts';
import { loadConfig } from '../../src/config/load-config.ts';
import { startBroker, type BrokerOptions } from '../../src/root.ts';
import { asSuperuser } from './postgres.ts';

export interface TestEstate extends DevEnvironment {
  dir: string;
  grpcPort: number;
  httpPort: number;
  httpUrl: string;
  /** Superuser URLs of the broker's own database and of the target. */
  databaseUrl: string;
  targetUrl: string;
  mint(workload: string, ttl?: number): Promise<string>;
  /** A Connect client that calls as `spiffe://dev.leasehold.test/<workload>`, with a token of this life (default 1 h). */
  client<S extends DescService>(service: S, workload: string, port?: number, tokenLife?: number): Client<S>;
  remove(): Promise<void>;
}

/** Databases, trust domain, configuration and first policy for one test file; no broker yet. */
export async function createEstate(label: string, overrides: Record<string, object> = {}): Promise<TestEstate> {
  const dir = await mkdtemp(path.join(tmpdir(), `leasehold-${label}-`));
  const superuserUrl = inject('postgresUrl');
  const suffix = randomBytes(4).toString('hex');
  const [database, target] = [`b_${label}_${suffix}`, `w_${label}_${suffix}`];
  const [grpcPort, httpPort] = [await freePort(), await freePort()];
  const environment = await prepareDevEnvironment({
    dir,
    superuserUrl,
    database,
    target,
    grpcPort,
    httpPort,
    overrides: { log: { level: 'debug' }, ...overrides },
  });
  const urlOf = (name: string) => {
    const url = new URL(superuserUrl);
    url.pathname = `/${name}`;
    return url.href;
  };
  const mint = (workload: string, ttl = 3_600_000) =>
    environment.trustDomain.mint({ workload: devWorkload(workload), audience: 'leasehold', ttl });
  return {
    ...environment,
    dir,
    grpcPort,
    httpPort,
    httpUrl: `http://127.0.0.1:${httpPort}`,
    databaseUrl: urlOf(database),
    targetUrl: urlOf(target),
    mint,
    client: (service, workload, port = httpPort, tokenLife?: number) => {
      let token: Promise<string> | undefined;
      const authorize: Interceptor = (next) => async (request) => {
        token ??= mint(workload, tokenLife);
        request.header.set('authorization', `Bearer ${await token}`);
        return await next(request);
      };
      const baseUrl = `http://127.0.0.1:${port}`;
      return createClient(service, createConnectTransport({ baseUrl, httpVersion: '1.1', interceptors: [authorize] }));
    },
    remove: async () => {
      await asSuperuser(superuserUrl, async (client) => {
        for (const name of [database, target]) await client.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
        const { rows } = await client.query<{ rolname: string }>(
          `SELECT rolname FROM pg_roles WHERE rolname IN ($1, $2)`,
          [`${database}_app`, `${target}_leasehold`],
        );
        for (const { rolname } of rows) await client.query(`DROP ROLE ${rolname}`).catch(() => undefined);
      });
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** The broker in this process, on the estate's ports. */
export async function startInProcess(estate: TestEstate, options: Partial<BrokerOptions> = {}) {
  const log: string[] = [];
  const config = loadConfig({ path: estate.configFile, env: process.env });
  const broker = await startBroker({ config, write: (line) => log.push(line), ...options });
  return { ...broker, log };
}

export interface BrokerProcess {
  child: ChildProcess;
  /** All that it wrote to stderr. */
  log(): string;
  /** Resolves with the signal or exit code. */
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  /** SIGTERM, then waits. */
  stop(): Promise<void>;
  kill(): Promise<void>;
}

/** The broker as a child process, ready to serve. With `killAt` it kills itself with SIGKILL when it gets there. */
export async function startProcess(
  estate: TestEstate,
  options: { killAt?: FaultPoint; configFile?: string; env?: Record<string, string> } = {},
): Promise<BrokerProcess> {
  const main = path.join(import.meta.dirname, 'broker-main.ts');
  const child = spawn(process.execPath, [main, options.configFile ?? estate.configFile], {
    env: {
      ...process.env,
      ...options.env,
      ...(options.killAt === undefined ? {} : { LEASEHOLD_TEST_KILL_AT: options.killAt }),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (log += chunk));
  const exited = once(child, 'exit').then(([code, signal]) => ({
    code: code as number | null,
    signal: signal as NodeJS.Signals | null,
  }));
  const ready = once(createInterface(child.stdout), 'line');
  await Promise.race([
    ready,
    exited.then(({ code, signal }) => {
      throw new Error(`the broker did not start (${code ?? signal}):\n${log}`);
    }),
  ]);
  const end = async (signal: NodeJS.Signals) => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal);
    await exited;
  };
  return { child, log: () => log, exited, stop: () => end('SIGTERM'), kill: () => end('SIGKILL') };
}
