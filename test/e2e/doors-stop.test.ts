import { createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:http2';
import { createInterface } from 'node:readline';
import { describe, expect, test } from 'vitest';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { patientStream, trivialServices } from './support-doors-services.ts';
import { grpcClient, grpcFailure, post, startDoors, token } from './support-doors.ts';

// Fault 22: calls in flight finish, streams are told, and the broker is gone within the grace.

function gate(): { opened: Promise<void>; open: () => void } {
  let open!: () => void;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

describe('stopping', () => {
  test('calls in flight finish, streams end with SHUTTING_DOWN, new calls are refused', async () => {
    const finish = gate();
    const begun = gate();
    const reasons: unknown[] = [];
    let entered = 0;
    const served = await startDoors({
      services: trivialServices({
        getTask: async () => {
          entered += 1;
          if (entered === 2) begun.open();
          await finish.opened;
          return { task: { taskId: 'tsk_done' } };
        },
        watchTask: patientStream((reason) => reasons.push(reason)),
      }),
    });
    const grpc = grpcClient(served.grpcPort);

    const watch = grpc.stream(TaskService.method.watchTask, { taskId: 'tsk_1' });
    await once(watch, 'data');
    const watchEnded = once(watch, 'error');
    const transport = createConnectTransport({ baseUrl: `http://127.0.0.1:${served.httpPort}`, httpVersion: '1.1' });
    const headers = { authorization: `Bearer ${token}` };
    const overConnect = createClient(TaskService, transport)
      .watchTask({ taskId: 'tsk_1' }, { headers })
      [Symbol.asyncIterator]();
    await overConnect.next();

    const inFlight = grpc.call(TaskService.method.getTask, {});
    const inFlightOverJson = post(served.httpPort, '/leasehold.v1.TaskService/GetTask', {});
    await begun.opened;
    const ready = await fetch(`http://127.0.0.1:${served.httpPort}/readyz`);
    expect(ready.status).toBe(200);

    const stopped = served.doors.stop(20_000);
    const [watchError] = await watchEnded;
    expect(grpcFailure(watchError)).toMatchObject({ code: 14, reason: 'SHUTTING_DOWN' });
    await expect(overConnect.next()).rejects.toMatchObject({ code: 14 });
    expect(reasons).toHaveLength(2);

    expect(await grpc.call(TaskService.method.openTask, {})).toMatchObject({
      failure: { code: 14, reason: 'SHUTTING_DOWN' },
    });
    const notReady = await fetch(`http://127.0.0.1:${served.httpPort}/readyz`);
    expect(notReady.status).toBe(503);

    finish.open();
    expect(await inFlight).toMatchObject({ answer: { task: { taskId: 'tsk_done' } } });
    expect(await inFlightOverJson).toMatchObject({ status: 200, body: { task: { taskId: 'tsk_done' } } });
    await stopped;
    expect(served.events('broker.stopped')).toMatchObject([{ forced: false }]);
    await expect(post(served.httpPort, '/healthz', {})).rejects.toThrow();
    grpc.close();
  });

  test('a call that does not end is refused at the end of the grace', async () => {
    const begun = gate();
    const served = await startDoors({
      services: trivialServices({
        getTask: () => {
          begun.open();
          return new Promise<never>(() => undefined);
        },
      }),
    });
    const grpc = grpcClient(served.grpcPort);
    const stuck = grpc.call(TaskService.method.getTask, {});
    await begun.opened;
    await Promise.all([served.doors.stop(600), served.doors.stop(600)]);
    expect(await stuck).toMatchObject({ failure: { code: 14, reason: 'SHUTTING_DOWN' } });
    expect(served.events('broker.stopped')).toMatchObject([{ forced: true }]);
    grpc.close();
  });

  test('a peer that ignores GOAWAY does not keep the broker', async () => {
    const served = await startDoors();
    const session = connect(`http://127.0.0.1:${served.grpcPort}`);
    await once(session, 'connect');
    session.on('error', () => undefined);
    session.removeAllListeners('goaway');
    await served.doors.stop(5_000);
    session.destroy();
  });
});

test('a process with an idle gRPC client and an open stream exits after SIGTERM', async () => {
  const child = spawn(process.execPath, ['test/e2e/support-doors-process.ts'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
    const { grpcPort } = JSON.parse(line) as { grpcPort: number };
    const grpc = grpcClient(grpcPort);
    await grpc.call(TaskService.method.getTask, {});
    const watch = grpc.stream(TaskService.method.watchTask, {});
    await once(watch, 'data');
    const told = once(watch, 'error');
    child.kill('SIGTERM');
    const [error] = await told;
    expect(grpcFailure(error)).toMatchObject({ reason: 'SHUTTING_DOWN' });
    const [code] = await once(child, 'exit');
    expect(code).toBe(0);
    grpc.close();
  } finally {
    child.kill('SIGKILL');
  }
});
