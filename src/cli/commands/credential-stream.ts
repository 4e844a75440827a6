import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { withBinding, withMaterial, type MaterialOptions } from '../material-options.ts';
import type { CertificateOptions } from '../client.ts';
import type { DpopOptions } from '../dpop.ts';
import { collect, identifier, requestArgument, toolAndTier, type ToolAndTier } from '../values.ts';

interface Options extends RemoteOptions, MaterialOptions, DpopOptions, CertificateOptions {
  tool: ToolAndTier;
  argument?: [string, string | number | boolean][];
  justification?: string;
  requestId?: string;
}

export function credentialStream(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'stream',
    summary: 'Keep a credential fresh until the task closes',
    description:
      'Gets a credential, and the next one before the last one runs out, until the task closes or a renewal is refused. ' +
      'With --output the file always holds the newest; it is replaced in one step.',
    examples: [
      [
        'leasehold credential stream tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool orders:read --format token --output /run/agent/token',
        'a file that a program reads at each use',
      ],
      [
        'leasehold credential stream tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool warehouse:read --json',
        'one JSON document per credential',
      ],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .requiredOption('--tool <tool:tier>', 'tool and tier', toolAndTier)
    .option('--argument <name=value>', 'a declared argument of the tool; repeat it for more', collect(requestArgument))
    .option('--justification <text>', 'what this use is for; recorded, never decides');
  withRequestId(withBinding(withMaterial(command))).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const { checkOutput, deliver } = await import('../delivery.ts');
    const { dpopProof } = await import('../dpop.ts');
    await checkOutput(options.output);
    const requestId = options.requestId ?? randomUUID();
    // Not resumed: a new stream begins with a new issue, which is for the agent to decide.
    const answers = remote.connect(options).stream(
      remote.CredentialService.method.streamCredential,
      {
        requestId,
        taskId,
        tool: options.tool.tool,
        tier: remote.tierValue[options.tool.tier],
        justification: options.justification ?? '',
        arguments: Object.fromEntries(options.argument ?? []),
        dpopProof: await dpopProof(remote.CredentialService.method.streamCredential, options),
        bindToCertificate: options.clientCert !== undefined,
      },
      false,
    );
    let first = true;
    for await (const answer of answers) {
      if (!first && options.json !== true && (options.format === undefined || options.output !== undefined))
        remote.line();
      first = false;
      await deliver(remote.required(answer.credential), options, requestId);
    }
  });
}
