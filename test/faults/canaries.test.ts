import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { ConnectError } from '@connectrpc/connect';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import type { Credential } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { createEstate, startProcess, type BrokerProcess, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import {
  callers,
  editConfig,
  eventually,
  expectSettled,
  openTask,
  reportsRead,
  warehouseRead,
  type RawFile,
} from './support.ts';

/** Fault 23: a whole life at log level debug, then a search for every secret of it wherever something is kept or told. */
let estate: TestEstate;
let broker: BrokerProcess;
let network: TestProxy;
/** Secret → what it is. Of a token the signature: without it the rest is no credential. */
const canaries = new Map<string, string>();
const told: string[] = [];

beforeAll(async () => {
  estate = await createEstate('canary');
  network = await startProxy(estate.target.host, estate.target.port);
  await editConfig(estate, ({ targets }) =>
    Object.assign(targets!['warehouse']!, { port: network.port, connectPort: estate.target.port, issueTimeout: '1s' }),
  );
  broker = await startProcess(estate);
  canaries.set((await readFile(path.join(estate.dir, 'sealing-key'), 'utf8')).trim(), 'the sealing key');
  canaries.set(estate.target.password, 'the password of the target');
  canaries.set(new URL(estate.brokerUrl).password, 'the password of the database');
});
afterAll(async () => {
  await broker?.stop();
  await network?.close();
  await estate?.remove();
});

function keep(credential: Credential | undefined, what: string): Credential {
  const { material } = credential!;
  if (material.case === 'accessToken') canaries.set(material.value.token.split('.')[2]!, `${what}: a token`);
  if (material.case === 'postgresLogin') canaries.set(material.value.password, `${what}: a password`);
  return credential!;
}

async function attestation(workload: string): Promise<string> {
  const token = await estate.mint(workload);
  canaries.set(token.split('.')[2]!, `the attestation of ${workload}`);
  return token;
}

/** All of a refusal: message, details, headers. */
async function refused(call: Promise<unknown>): Promise<void> {
  await call.then(
    () => {
      throw new Error('the call was answered, a refusal was expected');
    },
    (thrown: unknown) => {
      const error = ConnectError.from(thrown);
      told.push(error.message, JSON.stringify(error.details), JSON.stringify([...error.metadata]));
    },
  );
}

async function raw(authorization: string, body = '{}'): Promise<number> {
  const answer = await fetch(`${estate.httpUrl}/leasehold.v1.TaskService/ListTasks`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization },
    body,
  });
  told.push(await answer.text(), JSON.stringify([...answer.headers]));
  return answer.status;
}

async function broken(sql: string, mend: string, work: () => Promise<void>): Promise<void> {
  const run = (text: string) => asSuperuser(estate.databaseUrl, (client) => client.query(text));
  await run(sql);
  await work();
  await run(mend);
}

test(
  'no secret of a whole life is in a log, an answer, a table, a metric or the process list',
  { timeout: 90_000 },
  async () => {
    const { agent, orchestrator } = callers(estate);
    const taskId = await openTask(estate);

    // Issued, issued again, renewed, returned, streamed.
    for (const access of [reportsRead, warehouseRead]) {
      const request = { requestId: crypto.randomUUID(), taskId, ...access };
      keep((await agent.issueCredential(request)).credential, 'issued');
      const { lease } = keep((await agent.issueCredential(request)).credential, 'issued again');
      const renewed = keep((await agent.renewCredential({ leaseId: lease!.leaseId })).credential, 'renewed');
      await agent.returnCredential({ leaseId: renewed.lease!.leaseId });
      for await (const { credential } of agent.streamCredential({ taskId, ...access })) {
        keep(credential, 'streamed');
        break;
      }
    }

    // Attested well, badly and not at all.
    const good = await attestation('orchestrator');
    expect(await raw(`Bearer ${good}`)).toBe(200);
    const [header, payload, signature] = (await attestation('agent/analyst')).split('.') as [string, string, string];
    const forged = `${signature.slice(4)}AAAA`;
    canaries.set(forged, 'a forged signature');
    expect(await raw(`Bearer ${header}.${payload}.${forged}`)).toBe(401);
    const none = Buffer.from('{"alg":"none","typ":"JWT"}').toString('base64url');
    expect(await raw(`Bearer ${none}.${payload}.${signature}`)).toBe(401);
    canaries.set('c2VjcmV0LWJhc2ljLWNhbmFyeQ==', 'a Basic header').set('opaque-canary-0123456789', 'an opaque token');
    expect(await raw('Basic c2VjcmV0LWJhc2ljLWNhbmFyeQ==')).toBe(401);
    expect(await raw('Bearer opaque-canary-0123456789')).toBe(401);
    expect(await raw(`Bearer ${good}`, '{"pageSize":"x"}')).toBe(400);

    // Refused, by policy and by what fails.
    await refused(agent.issueCredential({ taskId, tool: 'warehouse', tier: Tier.WRITE }));
    await network.mode('refuse');
    await refused(agent.issueCredential({ taskId, ...warehouseRead }));
    await network.mode('hang');
    await refused(agent.issueCredential({ taskId, ...warehouseRead }));
    await network.mode('pass');
    // The broker's own login at the target is refused, and the target quotes what it was asked.
    const admin = pg.escapeIdentifier(estate.target.user);
    await asSuperuser(estate.targetUrl, (client) => client.query(`ALTER ROLE ${admin} NOCREATEROLE`));
    await refused(agent.issueCredential({ taskId, ...warehouseRead }));
    await asSuperuser(estate.targetUrl, (client) => client.query(`ALTER ROLE ${admin} CREATEROLE`));
    await broken(
      'REVOKE INSERT ON leasehold.audit_events FROM leasehold_broker',
      'GRANT INSERT ON leasehold.audit_events TO leasehold_broker',
      async () => {
        for (const access of [reportsRead, warehouseRead]) await refused(agent.issueCredential({ taskId, ...access }));
      },
    );
    await eventually(async () => {
      const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
      keep(credential, 'issued at last');
    });

    // A close that the target does not let happen at once.
    await network.mode('refuse');
    await orchestrator.closeTask({ taskId });
    await eventually(async () => {
      const { leases } = await estate.client(AdminService, 'operator').listLeases({ troubled: true });
      told.push(...leases.map((lease) => lease.settleError));
      expect(leases.length).toBeGreaterThan(0);
    });
    await network.mode('pass');
    await expectSettled(estate, taskId, 40_000);

    const show = (value: unknown) =>
      JSON.stringify(value, (_, part: unknown) => (typeof part === 'bigint' ? String(part) : part));
    const places: [string, string][] = [
      ['the log', broker.log()],
      ['the refusals', told.join('\n')],
      ['the metrics', await (await fetch(`${estate.httpUrl}/metrics`)).text()],
      ['readyz', await (await fetch(`${estate.httpUrl}/readyz`)).text()],
      ['the JWKS', await (await fetch(`${estate.httpUrl}/.well-known/jwks.json`)).text()],
      ['the status', show(await estate.client(AdminService, 'operator').getStatus({}))],
      ['the audit', show(await estate.client(AuditService, 'auditor').listAuditEvents({ taskId, pageSize: 1_000 }))],
      ['the task', show(await orchestrator.getTask({ taskId }))],
      ['the tables', await everyTable()],
      ['the command line', await readFile(`/proc/${broker.child.pid}/cmdline`, 'utf8')],
      ['the environment', await readFile(`/proc/${broker.child.pid}/environ`, 'utf8')],
    ];
    expect(canaries.size).toBeGreaterThan(14);
    const found = places.flatMap(([place, text]) =>
      [...canaries].flatMap(([secret, what]) =>
        forms(secret).some((form) => text.includes(form)) ? [`${what} in ${place}`] : [],
      ),
    );
    expect(found).toEqual([]);
    // The search itself works: what is no secret is there.
    for (const [place, text] of places.slice(7, 9)) expect(text, place).toContain(taskId);
    expect(places[0]![1]).toContain('"debug"');
    for (const [place, text] of places) {
      expect(text.includes('SCRAM-SHA-256$'), place).toBe(false);
      expect(/eyJ[\w-]{20,}\.[\w-]{20,}/.test(text), place).toBe(false);
    }
  },
);

/** As it is, and as it looks in a URL, in hexadecimal, and in base64. */
function forms(secret: string): string[] {
  const bytes = Buffer.from(secret);
  return [
    secret,
    encodeURIComponent(secret),
    bytes.toString('hex'),
    bytes.toString('base64'),
    Buffer.from(secret, 'base64').toString('hex'),
  ];
}

/** Each row of each table, by a superuser: as a dump would have it. */
async function everyTable(): Promise<string> {
  return await asSuperuser(estate.databaseUrl, async (client) => {
    const { rows: tables } = await client.query<{ name: string }>(
      `SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')`,
    );
    expect(tables.length).toBeGreaterThan(5);
    let dump = '';
    for (const { name } of tables) {
      const { rows } = await client.query<{ row: string }>(`SELECT to_jsonb(t)::text AS row FROM ${name} t`);
      dump += rows.map(({ row }) => row).join('\n');
    }
    return dump;
  });
}

const starts: [string, (config: RawFile, dir: string) => Promise<void>][] = [
  [
    'a database that is not there',
    async ({ database }, dir) => {
      await writeFile(path.join(dir, 'other-url'), 'postgres://app:start-canary-1@127.0.0.1:9/broker');
      Object.assign(database!, { urlFile: path.join(dir, 'other-url') });
    },
  ],
  [
    'a database that does not know the password',
    async ({ database }, dir) => {
      const url = new URL(estate.brokerUrl);
      url.password = 'start-canary-1';
      await writeFile(path.join(dir, 'other-url'), url.href);
      Object.assign(database!, { urlFile: path.join(dir, 'other-url') });
    },
  ],
  [
    'a database URL that is none',
    async ({ database }, dir) => {
      await writeFile(path.join(dir, 'other-url'), 'postgres://app:start-canary-1@[broken/broker');
      Object.assign(database!, { urlFile: path.join(dir, 'other-url') });
    },
  ],
  [
    'a sealing key of the wrong size',
    async ({ keys }, dir) => {
      await writeFile(path.join(dir, 'other-key'), 'start-canary-1');
      Object.assign(keys!, { sealingKeyFile: path.join(dir, 'other-key') });
    },
  ],
];

test.for(starts)('a start that fails because of %s does not print the secret', async ([, edit]) => {
  const config = parse(await readFile(estate.configFile, 'utf8')) as RawFile;
  await edit(config, estate.dir);
  const file = path.join(estate.dir, 'start.yaml');
  await writeFile(file, stringify(config));
  const main = path.join(import.meta.dirname, '..', '..', 'src', 'main.ts');
  const child = spawn(process.execPath, [main, 'serve', '--config', file], { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  const [code] = (await once(child, 'close')) as [number];
  expect(code).toBeGreaterThan(0);
  expect(output).not.toContain('start-canary-1');
  expect(output.length).toBeGreaterThan(20);
});
