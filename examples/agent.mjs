// An orchestrator and its agent in one file: open a task, get a database login for it, use it, say what was done, close
// the task.
// Run `leasehold dev` first, then `node examples/agent.mjs`.
import { readFileSync } from 'node:fs';
import { createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { Tier } from 'leasehold/proto/common_pb.js';
import { CredentialService } from 'leasehold/proto/credential_service_pb.js';
import { TaskService } from 'leasehold/proto/task_service_pb.js';
import { ToolCallOutcome, ToolCallService } from 'leasehold/proto/tool_call_service_pb.js';
import pg from 'pg';

const tokens = process.env.LEASEHOLD_DEV_TOKENS ?? '.leasehold/tokens';

/** Every call carries the caller's own attestation: in production its JWT-SVID, here a token of the development trust domain. */
function callAs(name) {
  return createConnectTransport({
    baseUrl: process.env.LEASEHOLD_SERVER ?? 'http://127.0.0.1:7080',
    httpVersion: '1.1',
    interceptors: [
      (next) => (request) => {
        request.header.set('authorization', `Bearer ${readFileSync(`${tokens}/${name}.jwt`, 'utf8')}`);
        return next(request);
      },
    ],
  });
}

const tasks = createClient(TaskService, callAs('orchestrator'));
const credentials = createClient(CredentialService, callAs('analyst'));
const calls = createClient(ToolCallService, callAs('analyst'));

const { task } = await tasks.openTask({
  requestId: crypto.randomUUID(),
  intent: 'Count the orders',
  agent: 'analyst',
  tools: [{ tool: 'warehouse', tier: Tier.READ }],
});
try {
  const { credential } = await credentials.issueCredential({
    requestId: crypto.randomUUID(),
    taskId: task.taskId,
    tool: 'warehouse',
    tier: Tier.READ,
  });
  const { host, port, database, username: user, password } = credential.material.value;
  const warehouse = new pg.Client({ host, port, database, user, password });
  await warehouse.connect();
  const { rows } = await warehouse.query('SELECT count(*) FROM orders');
  console.log(`${rows[0].count} orders, read as ${user}`);
  await warehouse.end();
  await calls.recordToolCall({
    call: {
      requestId: crypto.randomUUID(),
      taskId: task.taskId,
      leaseId: credential.lease.leaseId,
      action: 'select',
    },
    outcome: ToolCallOutcome.SUCCEEDED,
    effect: { objects: ['table:orders'], rows: 1n },
  });
} finally {
  const closed = await tasks.closeTask({ requestId: crypto.randomUUID(), taskId: task.taskId, wait: true });
  console.log(`the task is closed; ${closed.summary.revoked} credential revoked`);
}
