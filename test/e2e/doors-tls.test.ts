import { credentials } from '@grpc/grpc-js';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect as connectHttp2 } from 'node:http2';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { StartError, isLoopback } from '../../src/server/options.ts';
import { createTestCa } from '../support/bundle-certificates.ts';
import { patientStream, trivialServices } from './support-doors-services.ts';
import type { TestDoors } from './support-doors.ts';
import { grpcClient, startDoors, token } from './support-doors.ts';

const ca = createTestCa();
let directory: string;
let files: { certFile: string; keyFile: string };
let served: TestDoors;

async function writePair({ cert, key }: { cert: string; key: string }): Promise<void> {
  await writeFile(files.certFile, cert);
  await writeFile(files.keyFile, key);
}

/** Serial number of the certificate that a new connection is shown. */
async function shown(port: number): Promise<string> {
  const socket = connectTls({
    host: '127.0.0.1',
    port,
    ca: ca.certificate,
    servername: 'localhost',
    ALPNProtocols: ['h2'],
  });
  await once(socket, 'secureConnect');
  const { serialNumber } = socket.getPeerCertificate();
  socket.destroy();
  return serialNumber;
}

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'leasehold-doors-'));
  files = { certFile: join(directory, 'tls.crt'), keyFile: join(directory, 'tls.key') };
  await writePair(ca.issue(['localhost', '127.0.0.1']));
  const door = { host: '127.0.0.1', port: 0, tls: files };
  served = await startDoors({
    grpc: door,
    http: door,
    tlsReloadMs: 3_600_000,
    services: trivialServices({ watchTask: patientStream(() => undefined) }),
  });
});
afterAll(async () => {
  await served.doors.stop(2_000);
  await rm(directory, { recursive: true });
});

describe('with certificate and key', () => {
  test('gRPC, HTTP/2 and HTTP/1.1 are served', async () => {
    const grpc = grpcClient(served.grpcPort, credentials.createSsl(Buffer.from(ca.certificate)), 'localhost');
    expect(await grpc.call(TaskService.method.getTask, { taskId: 'tsk_1' })).toMatchObject({
      answer: { task: { taskId: 'tsk_1' } },
    });
    grpc.close();

    const session = connectHttp2(`https://localhost:${served.httpPort}`, { ca: ca.certificate });
    const stream = session.request({
      ':method': 'POST',
      ':path': '/leasehold.v1.TaskService/GetTask',
      'content-type': 'application/json',
      authorization: `Bearer ${token}`,
    });
    stream.end('{"taskId":"tsk_2"}');
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    expect(JSON.parse(Buffer.concat(chunks).toString())).toMatchObject({ task: { taskId: 'tsk_2' } });
    session.close();

    const http1 = request({
      host: 'localhost',
      port: served.httpPort,
      path: '/healthz',
      ca: ca.certificate,
      agent: false,
    });
    http1.end();
    const [response] = await once(http1, 'response');
    expect(response.statusCode).toBe(200);
    expect(response.headers['strict-transport-security']).toBeDefined();
    response.resume();
    await once(response, 'close');
  });

  test('a new pair is taken over without dropping what is open, and a broken one is not', async () => {
    const grpc = grpcClient(served.grpcPort, credentials.createSsl(Buffer.from(ca.certificate)), 'localhost');
    const watch = grpc.stream(TaskService.method.watchTask);
    watch.on('error', () => undefined);
    await once(watch, 'data');
    const first = [await shown(served.grpcPort), await shown(served.httpPort)];
    expect(first[0]).toBe(first[1]);

    const second = ca.issue(['localhost', '127.0.0.1']);
    await writePair(second);
    await served.doors.reloadTls();
    const renewed = await shown(served.grpcPort);
    expect(renewed).not.toBe(first[0]);
    expect(await shown(served.httpPort)).toBe(renewed);

    // A certificate whose key has not arrived yet, then rubbish, then nothing: the last good pair stays.
    await writeFile(files.certFile, ca.issue(['localhost']).cert);
    await served.doors.reloadTls();
    await writeFile(files.certFile, 'not a certificate');
    await served.doors.reloadTls();
    await served.doors.reloadTls();
    await rm(files.keyFile);
    await served.doors.reloadTls();
    expect([await shown(served.grpcPort), await shown(served.httpPort)]).toEqual([renewed, renewed]);
    expect(served.events('tls.refused').length).toBe(6);
    const scraped = await fetchMetrics();
    expect(scraped).toContain('leasehold_tls_refused_total{door="grpc"} 3');

    // The stream of before is still the same stream.
    expect(await grpc.call(TaskService.method.getTask, {})).toHaveProperty('answer');
    expect(watch.destroyed).toBe(false);
    await writePair(second);
    watch.cancel();
    grpc.close();
  });

  test('plaintext and old TLS versions get nowhere', async () => {
    const socket = connectTls({ host: '127.0.0.1', port: served.grpcPort, ca: ca.certificate, maxVersion: 'TLSv1.1' });
    await expect(once(socket, 'secureConnect')).rejects.toThrow();
    const grpc = grpcClient(served.grpcPort);
    expect(await grpc.call(TaskService.method.getTask, {}, undefined, 2_000)).toHaveProperty('failure');
    grpc.close();
  });
});

async function fetchMetrics(): Promise<string> {
  const get = request({ host: 'localhost', port: served.httpPort, path: '/metrics', ca: ca.certificate, agent: false });
  get.end();
  const [response] = await once(get, 'response');
  let text = '';
  for await (const chunk of response) text += String(chunk);
  return text;
}

describe('without', () => {
  test('a door beyond loopback is refused at start, by name, unless plaintext is asked for', async () => {
    const open = { host: '0.0.0.0', port: 0 };
    await expect(startDoors({ grpc: open })).rejects.toThrow(/gRPC door would serve 0\.0\.0\.0:0 without TLS/);
    await expect(startDoors({ http: open })).rejects.toThrow(StartError);
    const asked = await startDoors({
      grpc: { ...open, allowPlaintext: true },
      http: { ...open, allowPlaintext: true },
    });
    await asked.doors.stop(500);
  });

  test.each([
    ['127.0.0.1', true],
    ['127.9.9.9', true],
    ['::1', true],
    ['localhost', true],
    ['::ffff:10.0.0.1', false],
    ['10.0.0.1', false],
    ['localhost.example.com', false],
    ['::', false],
  ])('%s is loopback: %s', (host, expected) => {
    expect(isLoopback(host)).toBe(expected);
  });

  test('files that are missing or a port that is taken stop the start with a sentence, and leave nothing open', async () => {
    const missing = { host: '127.0.0.1', port: 0, tls: { certFile: '/nowhere/tls.crt', keyFile: '/nowhere/tls.key' } };
    await expect(startDoors({ grpc: missing })).rejects.toThrow(/gRPC door cannot use \/nowhere\/tls\.crt/);
    const taken = { host: '127.0.0.1', port: served.httpPort };
    await expect(startDoors({ http: taken })).rejects.toThrow(/another process listens there/);
  });
});
