import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { Agent } from 'node:https';
import path from 'node:path';
import { connect } from 'node:tls';
import { createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { credentials } from '@grpc/grpc-js';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { runCli } from '../cli/run-cli.ts';
import { createEstate, startInProcess } from '../support/broker.ts';
import type { TestEstate } from '../support/broker.ts';
import { createTestCa } from '../support/bundle-certificates.ts';
import { reportsRead } from './support.ts';
import { grpcClient, metadata } from './support-doors.ts';

const ca = createTestCa();
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let caFile: string;
let url: string;

beforeAll(async () => {
  estate = await createEstate('tls');
  const { cert, key } = ca.issue(['127.0.0.1', 'localhost']);
  const certFile = path.join(estate.dir, 'server.pem');
  const keyFile = path.join(estate.dir, 'server-key.pem');
  await writeFile(certFile, cert);
  await writeFile(keyFile, key, { mode: 0o600 });
  caFile = path.join(estate.dir, 'ca.pem');
  await writeFile(caFile, ca.certificate);
  url = `https://127.0.0.1:${estate.httpPort}`;
  const config = parse(await readFile(estate.configFile, 'utf8')) as {
    broker: { issuer: string };
    server: Record<'grpc' | 'http', { listen: string; tls?: object }>;
  };
  config.broker.issuer = url;
  for (const door of ['grpc', 'http'] as const) config.server[door].tls = { certFile, keyFile };
  await writeFile(estate.configFile, stringify(config));
  broker = await startInProcess(estate);
});
afterAll(async () => {
  await broker?.stop(500);
  await estate?.remove();
});

function tasksOverTls(token: string, authorities?: string) {
  return createClient(
    TaskService,
    createConnectTransport({
      baseUrl: url,
      httpVersion: '1.1',
      nodeOptions: { agent: new Agent({ ...(authorities === undefined ? {} : { ca: authorities }) }) },
      interceptors: [
        (next) => async (request) => {
          request.header.set('authorization', `Bearer ${token}`);
          return await next(request);
        },
      ],
    }),
  );
}

test('one task over both doors, with a client that trusts the certificate’s authority', async () => {
  const tasks = tasksOverTls(await estate.mint('orchestrator'), ca.certificate);
  const { task } = await tasks.openTask({ intent: 'over TLS', agent: 'analyst', tools: [reportsRead] });
  const grpc = grpcClient(estate.grpcPort, credentials.createSsl(Buffer.from(ca.certificate)));
  try {
    const headers = metadata(`Bearer ${await estate.mint('orchestrator')}`);
    expect(await grpc.call(TaskService.method.getTask, { taskId: task!.taskId }, headers)).toMatchObject({
      answer: { task: { taskId: task!.taskId, state: TaskState.OPEN } },
    });
  } finally {
    grpc.close();
  }
});

test('a client that does not know the authority sends nothing', async () => {
  const tasks = tasksOverTls(await estate.mint('orchestrator'));
  await expect(tasks.listTasks({})).rejects.toThrow(/certificate|self.signed|unable to verify/i);
});

test.each([
  ['gRPC', () => estate.grpcPort],
  ['HTTP', () => estate.httpPort],
])('the %s door speaks TLS 1.2 or later, and no plaintext', async (_door, port) => {
  const modern = connect({ port: port(), host: '127.0.0.1', ca: ca.certificate, ALPNProtocols: ['h2'] });
  await once(modern, 'secureConnect');
  expect(modern.getProtocol()).toBe('TLSv1.3');
  modern.destroy();
  const old = connect({
    port: port(),
    host: '127.0.0.1',
    ca: ca.certificate,
    minVersion: 'TLSv1.1',
    maxVersion: 'TLSv1.1',
    ciphers: 'DEFAULT@SECLEVEL=0',
  });
  const [error] = (await once(old, 'error')) as [Error];
  expect(error.message).toMatch(/protocol|version|ECONNRESET|disconnected/i);
  await expect(fetch(`http://127.0.0.1:${port()}/livez`)).rejects.toThrow();
});

test('the command line drives a task with --ca-file, and says what is missing without it', async () => {
  const tokenFile = path.join(estate.dir, 'orchestrator.jwt');
  await writeFile(tokenFile, await estate.mint('orchestrator'), { mode: 0o600 });
  const remote = ['--server', url, '--token-file', tokenFile, '--json'];
  const open = ['task', 'open', 'from the shell', '--agent', 'analyst', '--tool', 'reports:read'];
  const opened = await runCli([...open, ...remote, '--ca-file', caFile]);
  expect(opened).toMatchObject({ code: 0, stderr: '' });
  const { task } = JSON.parse(opened.stdout) as { task: { taskId: string; state: string } };
  expect(task.state).toBe('TASK_STATE_OPEN');
  const closed = await runCli(['task', 'close', task.taskId, '--wait', ...remote, '--ca-file', caFile]);
  expect(JSON.parse(closed.stdout)).toMatchObject({ task: { taskId: task.taskId, state: 'TASK_STATE_CLOSED' } });

  const untrusting = await runCli(['task', 'get', task.taskId, ...remote, '--timeout', '3s']);
  expect(untrusting.code).not.toBe(0);
  expect(untrusting.stdout).toBe('');
  expect(untrusting.stderr).toMatch(/certificate|ca-file/i);
});
