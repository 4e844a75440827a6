import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { collect, identifier, toolAndTier, type ToolAndTier } from '../values.ts';

interface Options extends RemoteOptions {
  tool: ToolAndTier[];
  justification?: string;
  requestId?: string;
}

export function approvalRequest(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'request',
    summary: 'Ask for all that a task will need at once',
    description:
      'Asks people one time for everything, before the agent needs it. Says of each tool and tier whether it needs people at ' +
      'all. For uses with arguments call RequestApprovals, which takes the exact ones.',
    examples: [
      [
        'leasehold approval request tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool shop:write --tool repo:execute --justification "tonight"',
        'two things, one message to people',
      ],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .requiredOption('--tool <tool:tier>', 'tool and tier; repeat it for more', collect(toolAndTier))
    .option('--justification <text>', 'what they are for; approvers see it');
  withRequestId(command).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.ApprovalService.method.requestApprovals, {
      requestId: options.requestId ?? randomUUID(),
      taskId,
      actions: options.tool.map(({ tool, tier }) => ({ tool, tier: remote.tierValue[tier] })),
      justification: options.justification ?? '',
    });
    if (options.json === true) {
      remote.jsonLine(remote.RequestApprovalsResponseSchema, answer);
      return;
    }
    remote.table(
      ['TOOL', 'TIER', 'EFFECT', 'APPROVAL', 'WHY'],
      answer.results.map(({ effect, approval, reason }, index) => [
        options.tool[index]?.tool ?? '',
        options.tool[index]?.tier ?? '',
        { text: remote.effectName(effect), tone: remote.effectTone(effect) },
        approval?.approvalId ?? '-',
        reason,
      ]),
    );
  });
}
