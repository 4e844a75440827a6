import { Command } from 'commander';
import { agentList } from './commands/agent-list.ts';
import { approvalBreakGlass } from './commands/approval-break-glass.ts';
import { approvalApprove, approvalDeny } from './commands/approval-decide.ts';
import { approvalGet } from './commands/approval-get.ts';
import { approvalList } from './commands/approval-list.ts';
import { approvalRequest } from './commands/approval-request.ts';
import { approvalWatch } from './commands/approval-watch.ts';
import { auditList } from './commands/audit-list.ts';
import { callBegin } from './commands/call-begin.ts';
import { callEnd } from './commands/call-end.ts';
import { callGet } from './commands/call-get.ts';
import { callList } from './commands/call-list.ts';
import { callRecord } from './commands/call-record.ts';
import { completion } from './commands/completion.ts';
import { configCheck } from './commands/config-check.ts';
import { credentialIssue } from './commands/credential-issue.ts';
import { credentialRenew } from './commands/credential-renew.ts';
import { credentialReturn } from './commands/credential-return.ts';
import { credentialStream } from './commands/credential-stream.ts';
import { demo } from './commands/demo.ts';
import { dev } from './commands/dev.ts';
import { help } from './commands/help.ts';
import { leaseAbandon } from './commands/lease-abandon.ts';
import { leaseGet } from './commands/lease-get.ts';
import { leaseList } from './commands/lease-list.ts';
import { leaseSettle } from './commands/lease-settle.ts';
import { contain } from './commands/contain.ts';
import { lockCreate } from './commands/lock-create.ts';
import { lockGet } from './commands/lock-get.ts';
import { lockLift } from './commands/lock-lift.ts';
import { lockList } from './commands/lock-list.ts';
import { migrate } from './commands/migrate.ts';
import { policyCheck } from './commands/policy-check.ts';
import { policyTest } from './commands/policy-test.ts';
import { policyApply } from './commands/policy-apply.ts';
import { policyDiff } from './commands/policy-diff.ts';
import { policyExplain } from './commands/policy-explain.ts';
import { policyList } from './commands/policy-list.ts';
import { policyReplay } from './commands/policy-replay.ts';
import { policyRollback } from './commands/policy-rollback.ts';
import { reconcile } from './commands/reconcile.ts';
import { report } from './commands/report.ts';
import { serve } from './commands/serve.ts';
import { signalClear } from './commands/signal-clear.ts';
import { signalList } from './commands/signal-list.ts';
import { signalReport } from './commands/signal-report.ts';
import { status } from './commands/status.ts';
import { taskClose } from './commands/task-close.ts';
import { taskExtend } from './commands/task-extend.ts';
import { taskGet } from './commands/task-get.ts';
import { taskHandover } from './commands/task-handover.ts';
import { taskHeartbeat } from './commands/task-heartbeat.ts';
import { taskList } from './commands/task-list.ts';
import { taskOpen } from './commands/task-open.ts';
import { taskTree } from './commands/task-tree.ts';
import { taskTimeline } from './commands/task-timeline.ts';
import { taskWatch } from './commands/task-watch.ts';
import { toolList } from './commands/tool-list.ts';
import { version } from './commands/version.ts';
import { group } from './define.ts';
import { version as release } from '../version.ts';

/** The whole command tree. Settings of the root come first: commander hands them down when a subcommand is made. */
export function buildProgram(): Command {
  const program = new Command('leasehold')
    .description(
      'Credential broker for AI agents: one task, one tool, one short-lived credential, all settled at close.',
    )
    .exitOverride()
    // What commander would print goes through run.ts, as every other error does.
    .configureOutput({ outputError: () => {} })
    .helpCommand(false)
    .showHelpAfterError(false)
    .version(release, '-V, --version', 'print the release');

  program.commandsGroup('Work:');
  const task = group(program, 'task', 'Open, follow and close tasks');
  for (const add of [
    taskOpen,
    taskGet,
    taskList,
    taskTree,
    taskWatch,
    taskTimeline,
    taskExtend,
    taskHeartbeat,
    taskHandover,
    taskClose,
  ])
    add(task);
  const credential = group(program, 'credential', 'Get, renew and return credentials');
  for (const add of [credentialIssue, credentialRenew, credentialReturn, credentialStream]) add(credential);

  const call = group(program, 'call', 'Record tool calls, and list them');
  for (const add of [callBegin, callEnd, callRecord, callGet, callList]) add(call);

  const approval = group(program, 'approval', 'Decide what needs people, and ask for it');
  for (const add of [
    approvalList,
    approvalGet,
    approvalApprove,
    approvalDeny,
    approvalWatch,
    approvalRequest,
    approvalBreakGlass,
  ]) {
    add(approval);
  }

  program.commandsGroup('Stop:');
  const lock = group(program, 'lock', 'Lock what must not go on (the kill switch)');
  for (const add of [lockCreate, lockList, lockGet, lockLift]) add(lock);
  contain(program);

  program.commandsGroup('Look:');
  const lease = group(program, 'lease', 'List leases, and see to those that could not be revoked');
  for (const add of [leaseList, leaseGet, leaseSettle, leaseAbandon]) add(lease);
  toolList(group(program, 'tool', 'List tools'));
  agentList(group(program, 'agent', 'List agents'));
  auditList(group(program, 'audit', 'Read the audit trail'));
  status(program);

  program.commandsGroup('Govern:');
  const policy = group(program, 'policy', 'Check, test, apply, compare, explain and replay policy');
  for (const add of [
    policyCheck,
    policyTest,
    policyApply,
    policyDiff,
    policyExplain,
    policyReplay,
    policyList,
    policyRollback,
  ])
    add(policy);
  const signal = group(program, 'signal', 'Report, list and clear what is known of agents, workloads, tools and tasks');
  for (const add of [signalReport, signalList, signalClear]) add(signal);
  report(program);

  program.commandsGroup('Run:');
  serve(program);
  dev(program);
  demo(program);
  migrate(program);
  reconcile(program);
  configCheck(group(program, 'config', 'Check the configuration'));

  program.commandsGroup('Other:');
  completion(program);
  version(program);
  help(program);
  program.addHelpText(
    'after',
    '\nExamples:\n  # a broker for development, with everything that it needs\n  $ leasehold dev\n' +
      '  # what the exit codes mean\n  $ leasehold help exit-codes',
  );
  return program;
}
